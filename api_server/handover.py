"""A retiring frontend leaves its open connections to its successor, each as soon as nothing is going on on it.

To close them instead would reset the request that a client sends in the same moment. Nothing of a connection at rest
is worth keeping but how long it may rest.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from api_server.bounds import BoundedHttp, _Phase
from protocol import handover

Factory = Callable[[], "MovableHttp"]  # of connections' protocols


class MovableHttp(BoundedHttp):
    """One connection, which another process may take over."""

    kept = False  # it has had a request where it comes from

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.kept:  # then it may rest for as long as after any other response
            self._disarm()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    @property
    def rests(self) -> bool:
        """Every request has been answered, the answers have gone out, and no byte of another has come."""
        answered = self.cycle is None or self.cycle.response_complete
        if not answered or self._phase is not _Phase.HEAD or self._unread:
            return False
        return not self.transport.is_closing() and self.transport.get_write_buffer_size() == 0

    def move(self, end: socket.socket) -> bool:
        """Gives the connection away. False if there is no room for it now."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        if not handover.give(end, descriptor, kept=self.kept or bool(self.cycle)):
            return False
        self.transport.close()  # this process's own descriptor: the connection stays open
        return True


class Handover:
    """Both ends of the passage, of which one process uses one at a time. Owned by one event loop."""

    def __init__(self, give_fd: int, take_fd: int) -> None:
        self._give: Final = socket.socket(fileno=give_fd)
        self._take: Final = socket.socket(fileno=take_fd)
        self._arriving: Final[set[asyncio.Task[Any]]] = set()

    @property
    def arriving(self) -> bool:
        """A connection has been taken that is not yet served."""
        return bool(self._arriving)

    def start_taking(self, factory: Factory) -> None:
        """Serves what the frontend before this one leaves."""
        asyncio.get_running_loop().add_reader(self._take.fileno(), self._arrived, factory)

    def stop_taking(self) -> None:
        """What still comes is for the next one. Does nothing the second time."""
        asyncio.get_running_loop().remove_reader(self._take.fileno())

    def move(self, connections: Iterable[object]) -> None:
        """Gives away those at rest, as far as there is room."""
        for connection in list(connections):
            if isinstance(connection, MovableHttp) and connection.rests and not connection.move(self._give):
                return

    def close(self) -> None:
        self.stop_taking()
        self._give.close()
        self._take.close()

    def _arrived(self, factory: Factory) -> None:
        if (taken := handover.take(self._take)) is not None:
            task = asyncio.get_running_loop().create_task(_adopt(*taken, factory))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)


async def _adopt(connection: socket.socket, kept: bool, factory: Factory) -> None:
    protocol = factory()
    protocol.kept = kept
    with contextlib.suppress(OSError):  # it has been reset meanwhile
        await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
