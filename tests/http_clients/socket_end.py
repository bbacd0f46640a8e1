"""A WebSocket that waits, and says how it was ended.

socket_end.py URL [CERTIFICATE]
"""

import ssl
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

url, *certificate = sys.argv[1:]
context = ssl.create_default_context(cafile=certificate[0]) if certificate else None
with connect(url.replace("http", "ws", 1), ssl=context) as socket:
    socket.send("hello")
    assert socket.recv(timeout=60) == "hello"
    print("connected", flush=True)
    try:
        socket.recv(timeout=60)
    except ConnectionClosed as closed:
        print(closed.rcvd.code, closed.rcvd.reason)
