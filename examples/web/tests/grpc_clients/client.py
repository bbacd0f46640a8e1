"""Python's gRPC as a client of the example: calls of each kind, many at once, cancelled ones and late ones.

client.py DIRECTORY_OF_ECHO_PROTO ADDRESS [CERTIFICATE]
"""

import queue
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

PATIENCE = 60  # seconds

directory, address, *certificate = sys.argv[1:]
sys.path.insert(0, directory)
protos, services = grpc.protos_and_services("echo.proto")


def connect():
    if not certificate:
        return grpc.insecure_channel(address)
    with open(certificate[0], "rb") as file:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))


def text(of):
    return protos.Text(text=of)


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def each_kind(echo, name, times):
    for length in [0, 1, 1000, 100_000, times << 10]:
        said = text("x" * length)
        assert echo.Say(said, timeout=PATIENCE) == said, length
    request = protos.RepeatRequest(text=name, times=times)
    replies = [reply.text for reply in echo.Repeat(request, timeout=PATIENCE)]
    assert replies == [name] * times
    numbers = [str(number) for number in range(times)]
    assert echo.Join(map(text, numbers), timeout=PATIENCE).text == "".join(numbers)
    # Each waits for the one before.
    said = queue.SimpleQueue()
    replies = echo.Chat(iter(said.get, None), timeout=PATIENCE)
    for number in numbers:
        said.put(text(number))
        assert next(replies).text == number
    said.put(None)
    assert list(replies) == []


def for_ever():
    return protos.RepeatRequest(text="again", times=2**32 - 1, pause_ms=1)


def ends(echo):
    late = lambda: list(echo.Repeat(for_ever(), timeout=0.2))
    assert code_of(late) == grpc.StatusCode.DEADLINE_EXCEEDED
    replies = echo.Repeat(for_ever(), timeout=PATIENCE)
    assert next(replies).text == "again"
    replies.cancel()
    assert code_of(lambda: list(replies)) == grpc.StatusCode.CANCELLED
    # More than it puts together.
    much = lambda: echo.Join((text("x" * (1 << 16)) for _ in range(100)), timeout=PATIENCE)
    assert code_of(much) == grpc.StatusCode.RESOURCE_EXHAUSTED
    # More than it takes in one message.
    large = lambda: echo.Say(text("x" * (5 << 20)), timeout=PATIENCE)
    assert code_of(large) == grpc.StatusCode.OUT_OF_RANGE


with connect() as channel:
    echo = services.EchoStub(channel)
    each_kind(echo, "alone", 2000)
    ends(echo)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: each_kind(echo, str(number), 100), range(16)))
    nowhere = channel.unary_unary("/duopoll.echo.v1.Echo/Nothing", bytes, bytes)
    assert code_of(lambda: nowhere(b"", timeout=PATIENCE)) == grpc.StatusCode.UNIMPLEMENTED
print("done")
