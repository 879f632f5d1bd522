"""Takes connections from a listening socket that several frontends share, so that each has about as many as the others.

The kernel wakes all of them for a new connection, and asyncio takes whatever waits in one go: of a burst one frontend
may get all. Here one is taken at a time, and who has more connections than another lets that one go first, for a moment
that grows with the lead. Nobody is waited for who is gone, stuck, or busy for longer than that.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from api_server.board import ABSENT, Board

logger: Final = logging.getLogger("tokenwire.acceptor")

BACKLOG: Final = 2048
DEFERENCE_S: Final = 0.001  # for each connection that it has more
DEFERENCE_MAX_S: Final = 0.02
EVEN: Final = 16  # a lead of one, and one part in so many, is none
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
PAUSE_S: Final = 1.0  # when the machine has no room for another connection


class Acceptor:
    """What uvicorn needs of an asyncio.Server, on one listening socket. Owned by one event loop."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        board: Board | None,
    ) -> None:
        """`count` says how many connections there are already. The listener stays its owner's."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._count = count
        self._board = board
        self._opening: set[asyncio.Task[object]] = set()
        self._turn: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._watch()

    def close(self) -> None:
        """Takes no more."""
        if not self._closed:
            self._closed = True
            self._unwatch()
            if self._turn is not None:
                self._turn.cancel()
            self._absent()

    async def wait_closed(self) -> None:
        """Until the connections that were just being taken are there."""
        if self._opening:
            await asyncio.wait(self._opening)

    # ------------------------------------------------------------------------------------------------ one at a time

    def _watch(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._look)
        self._tell()

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._listener.fileno())

    def _look(self) -> None:
        """A connection waits."""
        if (delay_s := self._deference_s()) > 0:
            self._later(delay_s)
        else:
            self._accept()

    def _later(self, delay_s: float) -> None:
        self._unwatch()
        self._turn = self._loop.call_later(delay_s, self._take_turn)

    def _take_turn(self) -> None:
        """Takes what nobody else has taken meanwhile."""
        self._turn = None
        self._watch()
        self._accept()

    def _deference_s(self) -> float:
        """How long the others come first."""
        if self._board is None:
            return 0.0
        mine, least = self._tell(), self._board.least()
        lead = mine - least
        return 0.0 if lead <= 1 + least // EVEN else min(lead * DEFERENCE_S, DEFERENCE_MAX_S)

    def _tell(self) -> int:
        """Lets the others know how many connections there are here."""
        count = self._count() + len(self._opening)
        if self._board is not None:
            self._board.connections = count
        return count

    def _absent(self) -> None:
        """Lets the others know not to wait."""
        if self._board is not None:
            self._board.connections = ABSENT

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in EXHAUSTED:
                logger.error("no room for another connection: %s", error.strerror)
                self._later(PAUSE_S)
                self._absent()
            return  # any other is about a connection that did not come about
        connection.setblocking(False)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._tell()

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # it is gone again
            connection.close()
