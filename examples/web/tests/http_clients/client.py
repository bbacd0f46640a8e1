"""Python's requests and websockets as clients of the example.

client.py URL [CERTIFICATE]
"""

import asyncio
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

import requests
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

PATIENCE = 60  # seconds

url, *certificate = sys.argv[1:]


def session():
    session = requests.Session()
    # Which would trust whom the environment names instead.
    session.trust_env = False
    session.verify = certificate[0] if certificate else True
    return session


def pages(number):
    """Several requests on one connection, which stays."""
    with session() as client:
        for _ in range(20):
            assert client.get(url + "/", timeout=PATIENCE).text == "hello\n"
        numbers = list(range(number))
        reply = client.post(url + "/sum", json={"numbers": numbers}, timeout=PATIENCE)
        assert reply.json() == {"sum": sum(numbers)}
        # On one that may be closed: a body that nobody reads, and that is not there yet, hyper does not wait for.
        with session() as other:
            assert other.post(url + "/sum", data="{", timeout=PATIENCE).status_code == 415
        assert client.get(url + "/nothing", timeout=PATIENCE).status_code == 404
        # Chunks.
        pieces = [bytes([piece % 256]) * (piece * 100) for piece in range(100)]
        reply = client.put(url + "/upload", data=iter(pieces), timeout=PATIENCE)
        body = b"".join(pieces)
        assert reply.text == f"{len(body)} bytes, which add up to {sum(body)}\n"
        reply = client.get(url + "/count/100000", stream=True, timeout=PATIENCE)
        lines = [int(line) for line in reply.iter_lines()]
        assert lines == list(range(1, 100001))


def open_socket(path, **options):
    context = ssl.create_default_context(cafile=certificate[0]) if certificate else None
    return connect(url.replace("http", "ws", 1) + path, ssl=context, **options)


async def use_socket(number):
    async with open_socket("/socket") as socket:
        for message in ["hello", "", "\u20ac" * 10_000, b"", b"\0\xff" * 100_000, b"x" * (1 << 20)]:
            await socket.send(message)
            assert await socket.recv() == message
        # In fragments, and many before their replies are read.
        await socket.send(["frag", "ments"])
        assert await socket.recv() == "fragments"
        for message in range(100):
            await socket.send(str(message))
        for message in range(100):
            assert await socket.recv() == str(message)
        await (await socket.ping())
    assert socket.close_code == 1000, socket.close_code


async def misuse_sockets():
    # A page that is none.
    try:
        await open_socket("/")
        raise AssertionError("it is no socket")
    except InvalidStatus as refused:
        assert refused.response.status_code == 200
    with session() as client:
        assert client.get(url + "/socket", timeout=PATIENCE).status_code == 426


# Not by the blocking sockets of that module: two threads use one of them, which its TLS does not stand.
async def sockets():
    await asyncio.gather(*(use_socket(number) for number in range(8)))
    await misuse_sockets()


with ThreadPoolExecutor(8) as threads:
    list(threads.map(pages, range(8)))
asyncio.run(asyncio.wait_for(sockets(), PATIENCE))
print("done")
