"""A way for a piece of a streamed body to its connection without a turn of the event loop.

ASGI's `send` is a coroutine, so that every piece needs a task to wake for it, and that costs more than what the piece
is for. Our own server puts a Shortcut among the request's extensions; under another one there is none, and every piece
goes through `send`.
"""

from collections.abc import Callable
from typing import Final

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION: Final = "tokenwire"
SHORTCUT: Final = "shortcut"


class Shortcut:
    """Writes to one response, between its first and its last `send`. Not used while a `send` is under way."""

    __slots__ = ("_cycle", "_flow", "_told", "_write")

    def __init__(self, cycle: RequestResponseCycle, flow: FlowControl, write: Callable[[bytes], object]) -> None:
        self._cycle: Final = cycle
        self._flow: Final = flow
        self._write: Final = write
        self._told: Callable[[], None] = _nobody

    def open(self) -> bool:
        """A write would go out now: the client is there, and has taken what came before."""
        cycle = self._cycle
        return not self._flow.write_paused and not cycle.disconnected and cycle.chunked_encoding is not None

    def tell(self, told: Callable[[], None]) -> None:
        """Calls `told` after every write."""
        self._told = told

    def write(self, data: bytes) -> None:
        """One chunk of the body; none if `data` is empty, which would end it."""
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._cycle.chunked_encoding else data)
            self._told()


def _nobody() -> None:
    pass


def offer(shortcut: Shortcut) -> dict[str, dict[object, object]]:
    """A scope's extensions."""
    return {EXTENSION: {SHORTCUT: shortcut}}


def shortcut_of(scope: Scope) -> Shortcut | None:
    found = scope.get("extensions", {}).get(EXTENSION, {}).get(SHORTCUT)
    return found if isinstance(found, Shortcut) else None
