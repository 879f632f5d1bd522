"""A stream that waits until it is let go."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.requests import Request

from api_server.sse import EventStream


class Held:
    """Streams one event, and the second when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield b"data: 0\n\n"
        await self.go.wait()
        yield b"data: 1\n\n"

    async def handler(self, request: Request) -> EventStream:
        return EventStream(self.chunks(), "gen-1")
