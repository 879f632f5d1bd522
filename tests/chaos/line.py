"""A client that keeps its connection for as long as the server lets it, and calls anything else a failure."""

import asyncio
import json
from typing import Any, Final, Self

PATIENCE_S: Final = 120.0


class Reply:
    """One whole response."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def events(self) -> list[dict[str, Any]]:
        """All events of a stream that was not cut."""
        *events, last = [
            line.removeprefix("data: ") for line in self.body.decode().splitlines() if line.startswith("data: ")
        ]
        assert last == "[DONE]", self.body[-500:]
        return [json.loads(event) for event in events]


class Line:
    """At most one connection at a time; a new one only at first and after `Connection: close`. `with` closes it."""

    def __init__(self, port: int) -> None:
        self.connects = 0
        self._port = port
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> Reply:
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    async def post(self, path: str, body: object) -> Reply:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        return await self._ask(head.encode() + content)

    async def _ask(self, request: bytes) -> Reply:
        async with asyncio.timeout(PATIENCE_S):
            if self._ends is None:
                self._ends = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
                self.connects += 1
            reader, writer = self._ends
            writer.write(request)
            reply = await _read(reader)
        if reply.headers.get("connection") == "close":
            self.close()
        return reply

    def close(self) -> None:
        """The next request has a new connection."""
        if self._ends is not None:
            self._ends[1].close()
            self._ends = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


async def _read(reader: asyncio.StreamReader) -> Reply:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
    headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)
