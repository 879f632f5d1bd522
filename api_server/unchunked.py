"""Bodies for HTTP/1.0, which knows no chunks. uvicorn sends them all the same."""

import sys

from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def unchunked(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """`app`, with the end of the connection for the end of a body whose length it does not tell."""

    async def plain(scope: Scope, receive: Receive, send: Send) -> None:
        sized = False

        async def send_plain(message: Message) -> None:
            nonlocal sized
            if message["type"] == "http.response.start":
                sized = any(name.lower() == b"content-length" for name, _ in message["headers"])
                if not sized:
                    cycle.chunked_encoding = False
            elif not sized:
                more = message.get("more_body", False)
                cycle.expected_content_length = sys.maxsize if more else len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)  # type: ignore[arg-type]

    return plain  # type: ignore[return-value]
