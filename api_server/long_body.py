"""A JSON body that is made while it is sent, so that no more of it exists at a time than its reader takes, and other
requests have their turn between its parts. Knows nothing of what is in it."""

import asyncio
from collections.abc import Iterator
from typing import Final

from starlette.types import Receive, Scope, Send

WRITE_SIZE: Final = 64 << 10  # bytes that are worth a write; a body that is shorter tells its length


class LongBody:
    """A response with status 200. Should a part fail, the body ends without its end, and the client sees that. Used
    once."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts: Final = parts
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_left(receive))
        try:
            data = bytearray()
            for part in self._parts:
                data += part
                if len(data) >= WRITE_SIZE:
                    await self._write(send, bytes(data), more=True)
                    data.clear()
                await asyncio.sleep(0)
                if gone.done():
                    return
            await self._write(send, bytes(data), more=False)
        finally:
            gone.cancel()

    async def _write(self, send: Send, data: bytes, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            length = [] if more else [(b"content-length", b"%d" % len(data))]
            headers = [(b"content-type", b"application/json"), *length]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": more})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
