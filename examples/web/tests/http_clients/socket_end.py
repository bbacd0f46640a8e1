"""A WebSocket that waits, and says how it was ended.

socket_end.py URL [CERTIFICATE]
"""

import asyncio
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

url, *certificate = sys.argv[1:]


async def wait():
    context = ssl.create_default_context(cafile=certificate[0]) if certificate else None
    async with connect(url.replace("http", "ws", 1), ssl=context) as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
        print("connected", flush=True)
        try:
            await socket.recv()
        except ConnectionClosed as closed:
            print(closed.rcvd.code, closed.rcvd.reason)


asyncio.run(asyncio.wait_for(wait(), 60))
