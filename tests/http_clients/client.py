"""Python's requests and websockets as clients of the example.

client.py URL [CERTIFICATE]
"""

import ssl
import sys
from concurrent.futures import ThreadPoolExecutor

import requests
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

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
        assert client.post(url + "/sum", data="{", timeout=PATIENCE).status_code == 415
        assert client.get(url + "/nothing", timeout=PATIENCE).status_code == 404
        # Chunks.
        pieces = [bytes([piece % 256]) * (piece * 100) for piece in range(100)]
        reply = client.put(url + "/upload", data=iter(pieces), timeout=PATIENCE)
        body = b"".join(pieces)
        assert reply.text == f"{len(body)} bytes, which add up to {sum(body)}\n"
        reply = client.get(url + "/count/100000", stream=True, timeout=PATIENCE)
        lines = [int(line) for line in reply.iter_lines()]
        assert lines == list(range(1, 100001))


def context():
    return ssl.create_default_context(cafile=certificate[0]) if certificate else None


def open_socket(**options):
    return connect(url.replace("http", "ws", 1) + "/socket", ssl=context(), **options)


def sockets(number):
    with open_socket() as socket:
        for message in ["hello", "", "\u20ac" * 10_000, b"", b"\0\xff" * 100_000, b"x" * (1 << 20)]:
            socket.send(message)
            assert socket.recv(timeout=PATIENCE) == message
        # In fragments, and many before their replies are read.
        socket.send(["frag", "ments"])
        assert socket.recv(timeout=PATIENCE) == "fragments"
        for message in range(100):
            socket.send(str(message))
        for message in range(100):
            assert socket.recv(timeout=PATIENCE) == str(message)
        assert socket.ping().wait(PATIENCE)
    assert socket.close_code == 1000, socket.close_code


def bad_sockets():
    # Longer than a message may be.
    with open_socket(max_size=None) as socket:
        try:
            socket.send(b"x" * (5 << 20))
            socket.recv(timeout=PATIENCE)
            raise AssertionError("it was taken")
        except ConnectionClosedError:
            pass
    # A page that is none.
    try:
        connect(url.replace("http", "ws", 1) + "/", ssl=context())
        raise AssertionError("it is no socket")
    except InvalidStatus as refused:
        assert refused.response.status_code == 200
    with session() as client:
        assert client.get(url + "/socket", timeout=PATIENCE).status_code == 426


with ThreadPoolExecutor(8) as threads:
    for job in (pages, sockets):
        list(threads.map(job, range(8)))
bad_sockets()
print("done")
