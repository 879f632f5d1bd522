"""What surrounds every request and every WebSocket: its label, its one log line, what browsers of other origins must
see on every response, or may not open, what is counted of it, and the last resort for exceptions nobody expected."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from api_server.answers import REFUSED, Answers
from api_server.cors import Cors, Headers
from api_server.errors import ApiError
from api_server.respond import ErrorResponse

logger: Final = logging.getLogger("tokenwire.request")

SWITCHING: Final = 101
BROKEN: Final = 1011  # a WebSocket's 500, once it is open
STREAM_ID: Final = b"x-stream-id"  # what streams has this header, and nothing else has it
STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_ACCEPTABLE: Final = re.compile(rb"[\x21-\x7e]{1,256}")  # what load balancers and tracers make: visible ASCII


class Envelope:
    """The outermost layer. Sets `state.request_id` and answers with X-Request-Id; it is a label, with no authority."""

    def __init__(self, app: ASGIApp, cors: Cors, answers: Answers) -> None:
        self.app = app
        self.cors = cors
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["type"] == "websocket":
            app, headers = self.cors.refusal(scope) or self.app, []
        else:
            app, headers = self.cors.preflight(scope) or self.app, self.cors.headers(scope)
        await _Exchange(request_id, headers, self.answers).run(app, scope, receive, send)


class _Exchange:
    """One request and what became of it."""

    def __init__(self, request_id: str, headers: Headers, answers: Answers) -> None:
        """`headers` are for the response, whatever it will be."""
        self.request_id = request_id
        self.headers: Final = [(b"x-request-id", request_id.encode()), *headers]
        self.status = 0
        self.complete = False
        self.left = False  # the client went away before the response was complete
        self.streams = False
        self._answers: Final = answers

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()

        def label(message: Message) -> Awaitable[None]:  # not a coroutine itself: this is on every token's way
            if message["type"] in STARTS:
                self._begin(scope, message)
                message["headers"] = [*message.get("headers", ()), *self.headers]
            elif not message.get("more_body", False):
                self.complete = True
            return send(message)

        async def watch() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not self.complete:
                self.left = True
            return message

        try:
            await app(scope, watch, label)
        except asyncio.CancelledError:
            if self.status:
                raise
            error = ApiError("draining", "The server shut down before this request was complete.")
            await ErrorResponse(error)(scope, watch, label)
        except ClientDisconnected:  # from a WebSocket alone: nobody is there to tell
            self.left = True
        except Exception:
            if self.status and self.status != SWITCHING:
                raise  # a response that has begun can only be cut; the server logs the exception
            logger.exception("%s %s failed (request %s)", _method(scope), scope["path"], self.request_id)
            if self.status == SWITCHING:
                await send({"type": "websocket.close", "code": BROKEN})
                return
            error = ApiError("internal_error", "The server failed to answer this request.")
            await ErrorResponse(error)(scope, watch, label)
        finally:
            self._end(scope)
            self._log(scope, time.monotonic() - began_s)

    def _begin(self, scope: Scope, message: Message) -> None:
        self.status = message.get("status", SWITCHING)
        self._answers.count(scope["path"], scope.get(REFUSED, self.status))
        self.streams = any(name == STREAM_ID for name, _ in message.get("headers", ()))
        self._answers.tallies.streams += self.streams

    def _end(self, scope: Scope) -> None:
        tallies = self._answers.tallies
        tallies.streams -= self.streams
        if REFUSED not in scope:
            tallies.client_disconnects += self.left

    def _log(self, scope: Scope, took_s: float) -> None:
        """The query is left out: it may hold a key or a prompt."""
        if logger.isEnabledFor(logging.DEBUG):
            fields = {
                "request_id": self.request_id,
                "method": _method(scope),
                "path": scope["path"],
                "status": 499 if self.left else self.status,
                "took_ms": round(took_s * 1000, 1),
            }
            logger.debug(
                "%(method)s %(path)s %(status)s %(took_ms)s ms %(request_id)s", fields, extra={"fields": fields}
            )


def _method(scope: Scope) -> str:
    """Of a WebSocket, what stands in its place in the log."""
    return str(scope.get("method", "WS"))


def _request_id(scope: Scope) -> str:
    """The client's own if it is harmless to repeat and to log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ACCEPTABLE.fullmatch(value):
            return str(value.decode("ascii"))
    return secrets.token_hex(16)
