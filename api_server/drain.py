"""How a frontend stops taking work: the flag, the count of what still runs, and the gate that refuses what is new."""

import asyncio
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_server.auth import HEALTH_PATHS
from api_server.errors import ApiError
from api_server.respond import ErrorResponse

_CANCEL: Final = re.compile(r"/v1/requests/[^/]+/cancel")


class Drain:
    """Whether this process is on its way out, and how many requests it still owes an answer."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()  # on its way out, in either way
        self.draining = False  # what is new is refused
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def retiring(self) -> bool:
        """What is new goes elsewhere by itself; what comes here all the same is answered."""
        return self.begun.is_set() and not self.draining

    @property
    def active(self) -> int:
        return self._active

    def begin(self) -> None:
        """From now on only health is answered."""
        self.draining = True
        self.begun.set()

    def retire(self) -> None:
        """From now on each answer is its connection's last."""
        self.begun.set()

    def enter(self) -> None:
        self._active += 1
        self._idle.clear()

    def leave(self) -> None:
        self._active -= 1
        if self._active == 0:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns once no request runs."""
        await self._idle.wait()


class DrainGate:
    """Counts requests while they run, and answers 503 `draining` to those that come too late. Health passes, and
    so does who cancels what runs. An open WebSocket is no request: its generations are, and are counted where they
    run. While the process retires, clients are told to take their next request to another connection."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.drain.retiring:
            send = _closing(send)
        if scope["type"] == "lifespan" or scope["path"] in HEALTH_PATHS:
            await self.app(scope, receive, send)
            return
        if self.drain.draining and not _CANCEL.fullmatch(scope["path"]):
            error = ApiError("draining", "This server is shutting down; another one will take the request.")
            await ErrorResponse(error)(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        self.drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave()


def _closing(send: Send) -> Send:
    """Makes the response that begins here its connection's last."""

    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return last
