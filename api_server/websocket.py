"""uvicorn's WebSocket protocol with an end to everything, as bounds.py is for HTTP.

uvicorn answers pings that nobody reads for as long as they come, keeps every fragment of a message, takes as much of a
burst in one go as the kernel has, waits for ever for a reader that takes no more bytes, and logs the query, which may
hold a key. It does bound a message, and looks after a silent peer with pings.

It relies on uvicorn's `WebSocketsSansIOProtocol` taking the handshake in one piece from the HTTP protocol, feeding its
`conn` in `data_received`, collecting a message's fragments in `frames`, setting `read_paused` for as long as the
application has a message to take and `writable` while the transport takes bytes; tests on real sockets hold it to that.
"""

import asyncio
import logging
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api_server.answers import Answers, SendWait
from api_server.config import Config
from api_server.stall import Stall

SLICE: Final = 4 << 10  # bytes parsed in one go: of the smallest frames, some milliseconds' worth
MESSAGE_FACTOR: Final = 2  # so many times the body limit, and a message is not even read to its end
LATE: Final = 1008  # close code for a breach of our rules

# What uvicorn and its library would log: paths with their query at best, tracebacks of what clients send at worst.
SILENT: Final = logging.Logger("tokenwire.websocket", logging.CRITICAL + 1)


class BoundedSocket(WebSocketsSansIOProtocol):
    """One connection, from its handshake on. What is not uvicorn's comes first, as in BoundedHttp."""

    def __init__(self, bounds: Config, answers: Answers, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.logger = SILENT
        self.conn.logger, self.conn.debug = SILENT, False
        self._bounds = bounds
        self._wait = SendWait(answers.tallies)
        self._unread = bytearray()  # not yet the parser's
        self._next: asyncio.Handle | None = None  # the next slice's turn
        self._late: asyncio.TimerHandle | None = None  # the end of a message that has begun

    # ------------------------------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.stall = Stall(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unread.clear()
        self._wait.end()
        for timer in (self._next, self._late):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    # ------------------------------------------------------------------------------------------------ bytes that come

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated:
            self._unread += data
            self._take()
            return
        super().data_received(data)
        if not self.handshake_initiated:  # the library would not have it, and uvicorn waits for more
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_cont(self, event: Any) -> None:
        """Joins fragments as they come: a message of a million of them takes no more room than any other."""
        begun: Any = self.frames[0]
        if not isinstance(begun, bytearray):
            begun = bytearray(begun)
            self.frames = [begun]
        begun += event.data
        if event.fin:
            self.send_receive_event_to_app()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        self._pace()
        return message

    def _take(self) -> None:
        """One slice; the next after others had their turn, and the application its messages."""
        self._next = None
        if self._unread and self._ready:
            piece = bytes(self._unread[:SLICE])
            del self._unread[:SLICE]
            super().data_received(piece)
            self._time()
        self._pace()

    @property
    def _ready(self) -> bool:
        """Nobody has to catch up first: the application with messages, the peer with answers."""
        return not self.read_paused and self.writable.is_set() and not self.transport.is_closing()

    def _pace(self) -> None:
        """Reads on only where what was read is used up."""
        if self._unread or not self._ready:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
        if self._unread and self._ready and self._next is None:
            self._next = self.loop.call_soon(self._take)

    def _time(self) -> None:
        """A message that has begun must end in the time that a request's body has."""
        begun = bool(self.conn.reader.buffer or self.frames)
        if begun and self._late is None:
            self._late = self.loop.call_later(self._bounds.body_timeout_s, self._message_late)
        elif not begun and self._late is not None:
            self._late.cancel()
            self._late = None

    def _message_late(self) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(LATE, f"a message did not arrive within {self._bounds.body_timeout_s:g} s")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    # ------------------------------------------------------------------------------------------------ stalled readers

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait.begin()
        self._pace()

    def resume_writing(self) -> None:
        self._wait.end()
        super().resume_writing()
        self._pace()
