"""uvicorn's HTTP protocol with an end to everything, and with one request at a time.

httptools takes 64 MB of headers, and any `Upgrade` for the end of HTTP, so that a body is read as the next request.
uvicorn waits for ever for a silent client, for the rest of a body and for a reader that takes no more bytes. This
subclass stands before the parser and hands it heads that are whole, then that request's body, and nothing of a later
request before its turn: what comes early waits, in the kernel in the end, and can't disturb the answer that is going
out. An answer that goes out before its request was complete is the connection's last. Of upgrades, the one to a
WebSocket on its route is served, and takes the connection away from here.

A client that ends its side of the connection is gone, even if it would still read (`nc -N`): a full close looks the
same until something is written, and a request that nobody waits for must not go on for as long.

It relies on uvicorn's `HttpToolsProtocol` feeding the parser in `data_received` and calling `send_400_response` for
what the parser refuses, keeping the request in `cycle`, whose `keep_alive` and `transport.close` end the connection,
starting every request through `_start_asgi_task`, and asking `_should_upgrade` before `handle_websocket_upgrade`; tests
on real sockets hold it to that.
"""

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any, Final, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api_server.answers import REFUSED, Answers, SendWait
from api_server.auth import HEALTH_PATHS
from api_server.config import Config
from api_server.descriptors import Room
from api_server.errors import ApiError
from api_server.extent import SLICE, Chunked, Sized
from api_server.handshake import LINE_MAX, is_handshake, without_upgrade
from api_server.lightweight import Flow, Signal
from api_server.shortcut import Shortcut, offer
from api_server.stall import Stall
from api_server.unchunked import unchunked

READ_AHEAD: Final = 64 << 10  # bytes of later requests that are kept before reading pauses
WRITE_BUFFER: Final = 0  # bytes kept beyond the kernel's own before the next send waits: small ones cost a lot each
BODY_SLACK_S: Final = 1.0  # the application's own time limit comes first, and answers better
LINGER_S: Final = 1.0  # of silence after the last answer: closing over unread bytes would reset it away
UNREAD_FACTOR: Final = 4  # so many times the body limit is read and dropped then, for as long as a body may take

NONE: Final = deque[Any](maxlen=0)  # uvicorn's requests that wait for their turn: they wait here before they are parsed
INVALID: Final = "Invalid HTTP request received."
HEAD_END: Final = re.compile(rb"\r\n\r\n|(?<!\r)\n")  # a bare line feed ends nothing; the parser refuses it


class _Refused(Exception):
    """Stops the parser."""


class _Phase(Enum):
    HEAD = 0  # of the next request, begun or not
    BODY = 1
    ANSWER = 2  # the request is complete; what follows it waits
    LAST = 3  # what still comes is dropped


class BoundedHttp(HttpToolsProtocol):
    """One connection. What is not uvicorn's comes first, so that functools.partial makes its protocol factory of it.
    Where there is no `room` left, a connection is good for the health routes alone."""

    # With thirty attributes of its own, uvicorn's included, an object's dict would take 2 KB.
    __slots__ = (
        "_answers",
        "_body",
        "_body_size",
        "_bounds",
        "_crowded",
        "_dropped",
        "_keep_alive",
        "_linger_until_s",
        "_next",
        "_opens_socket",
        "_path",
        "_phase",
        "_room",
        "_scanned",
        "_timer",
        "_unread",
        "_wait",
        "stall",
    )

    def __init__(self, bounds: Config, answers: Answers, room: Room, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = NONE
        self._bounds = bounds
        self._answers = answers
        self._wait = SendWait(answers.tallies)
        self._room = room
        self._crowded = False
        self._phase = _Phase.HEAD
        self._opens_socket = False  # what the request at hand asks for
        self._unread = bytearray()  # not yet the parser's
        self._scanned = 0  # bytes of it without the end of a head
        self._path = ""  # of the request at hand, as it stands there
        self._body: Sized | Chunked = Sized(0)
        self._next: asyncio.Handle | None = None  # the turn of the next chunks
        self._body_size = 0  # on the wire, chunk framing included
        self._keep_alive = False  # what the request asked for
        self._dropped = 0
        self._linger_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.stall = Stall(transport)
        self._arm(self._bounds.header_timeout_s, self._head_late)
        self._crowded = len(self.connections) > self._room.served
        if len(self.connections) > self._room.told:
            transport.abort()

    def eof_received(self) -> None:
        if self.cycle is not None:
            self._disconnect(self.cycle)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _Phase.LAST
        self._disarm()
        self._unset_keepalive_if_required()  # uvicorn leaves it running after a reset
        self.resume_writing()
        super().connection_lost(exc)

    def _end(self) -> None:
        """A request's way of closing the connection, after its answer."""
        if self._phase is _Phase.ANSWER and not self._unread:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Nothing more is written, and the client has a moment to notice before the connection is closed."""
        self._phase = _Phase.LAST
        self._unread.clear()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger_until_s = self.loop.time() + self._bounds.body_timeout_s
        self._arm(LINGER_S, self.transport.close)

    def _disconnect(self, cycle: RequestResponseCycle) -> None:
        """What a request sees of its connection's end."""
        cycle.disconnected = not cycle.response_complete
        cycle.message_event.set()

    # ------------------------------------------------------------------------------------------------ bytes that come

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.LAST:
            self._drop(len(data))
            return
        self._unset_keepalive_if_required()
        self._unread += data
        if self._next is None:
            self._advance()

    def _advance(self) -> None:
        """Hands the parser as much as it may have now."""
        more = True
        while more and self._unread and not self.transport.is_closing():
            match self._phase:
                case _Phase.HEAD:
                    more = self._take_head()
                case _Phase.BODY:
                    more = self._take_body()
                case _:
                    more = False
                    if len(self._unread) > READ_AHEAD:
                        self.flow.pause_reading()  # until the answer is out; its client's end is then seen on writing

    def _take_head(self) -> bool:
        """False if it isn't all there, or refused."""
        if self._timer is None:
            self._arm(self._bounds.header_timeout_s, self._head_late)
        if self._unread[0] in b"\r\n":
            self._unread = self._unread.lstrip(b"\r\n")  # empty lines before a request mean nothing
            return bool(self._unread)
        if not self._unread[:1].isalpha():  # TLS, for one, may have no line for minutes
            self._refuse(ApiError("invalid_request_error", INVALID))
            return False
        found = HEAD_END.search(self._unread, max(0, self._scanned - 3))
        size = len(self._unread) if found is None else found.end()
        head = bytes(self._unread[:size])
        self._path = head.partition(b" ")[2].partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if size > self._bounds.max_header_size or head.count(b"\r\n") > self._bounds.max_headers + 2:
            size, count = self._bounds.max_header_size, self._bounds.max_headers
            self._refuse(ApiError("headers_too_large", f"The request's headers exceed {size} bytes or {count} fields."))
            return False
        if found is None:
            self._scanned = size
            return False
        self._scanned = 0
        del self._unread[:size]
        self._disarm()
        if self._crowded and self._path not in HEALTH_PATHS:
            self._refuse(ApiError("queue_full", "As many connections are open as may be."))
            return False
        self._opens_socket = self.ws_protocol_class is not None and is_handshake(head)
        if self._opens_socket and max(map(len, head.split(b"\r\n"))) > LINE_MAX:
            self._refuse(ApiError("headers_too_large", f"A line of the request's headers exceeds {LINE_MAX} bytes."))
            return False
        super().data_received(head if self._opens_socket else without_upgrade(head))
        if self._phase is _Phase.HEAD:
            self._refuse(ApiError("invalid_request_error", INVALID))
        return True

    def _take_body(self) -> bool:
        """False if more has to come first."""
        if self.cycle.response_started:
            self._forget_rest()
            return False
        try:
            size = self._body.take(self._unread)
        except ValueError:
            self._refuse(ApiError("invalid_request_error", INVALID))
            return False
        if size == 0:
            return False
        self._body_size += size
        if self._body_size > (limit := self._bounds.max_body_size):
            self._refuse(ApiError("request_too_large", f"The request body is larger than {limit} bytes."))
            return False
        piece = bytes(self._unread[:size])
        del self._unread[:size]
        super().data_received(piece)
        if size == SLICE and self._phase is _Phase.BODY:
            self.transport.pause_reading()
            self._next = self.loop.call_soon(self._go_on)
            return False
        return True

    def _go_on(self) -> None:
        """After others had their turn."""
        self._next = None
        if not self.transport.is_closing():
            if not self.flow.read_paused:
                self.transport.resume_reading()
            self._advance()

    def _forget_rest(self) -> None:
        """The answer has begun without the rest of its request, and ends the connection."""
        self._phase = _Phase.LAST
        self._disarm()
        self._drop(len(self._unread))
        self._unread.clear()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > UNREAD_FACTOR * self._bounds.max_body_size:
            self.flow.pause_reading()
        elif self.loop.time() < self._linger_until_s:
            self._arm(LINGER_S, self.transport.close)

    # ------------------------------------------------------------------------------------------------ parser's calls

    def on_message_begin(self) -> None:
        if self._phase is not _Phase.HEAD:
            raise _Refused  # the parser sees an end where we saw none: what follows is no request
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _Phase.HEAD:  # else it is a trailer, which nobody asked for
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._upgrades:
            return
        cycle, transport = self.cycle, self.transport
        cycle.message_event = Signal()
        cycle.transport = SimpleNamespace(  # type: ignore[assignment]
            write=transport.write, is_closing=transport.is_closing, close=self._end
        )
        self._keep_alive, cycle.keep_alive = cycle.keep_alive, False
        self._phase = _Phase.BODY
        sizes = [int(value) for name, value in self.headers if name == b"content-length"]
        self._body = Sized(sizes[0]) if sizes else Chunked()
        self._body_size = 0
        self._arm(self._bounds.body_timeout_s + BODY_SLACK_S, self._body_late)

    def on_message_complete(self) -> None:
        if self._upgrades:
            return
        self._phase = _Phase.ANSWER
        self._disarm()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    @property
    def _upgrades(self) -> bool:
        """The parser sees it as we do."""
        return self._opens_socket and bool(self.parser.should_upgrade())

    def _should_upgrade(self) -> bool:
        return self._opens_socket

    def handle_websocket_upgrade(self) -> None:
        """From here on the connection is the socket's, and so is what came early."""
        self._phase = _Phase.LAST
        early, self._unread = bytes(self._unread), bytearray()
        super().handle_websocket_upgrade()
        protocol = cast(asyncio.Protocol, self.transport.get_protocol())
        if self.flow.write_paused:
            protocol.pause_writing()  # the answer to an earlier request is still going out
        if early:
            protocol.data_received(early)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what the parser refuses."""
        self._refuse(ApiError("invalid_request_error", msg))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cycle.scope["extensions"] = offer(Shortcut(cycle, self.flow, self.transport.write))
        if cycle.scope["http_version"] == "1.0":
            app = unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The next request's turn, whose time begins now."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._phase is _Phase.ANSWER:
            self._phase = _Phase.HEAD
        if self._phase is _Phase.LAST or self._unread:
            self._unset_keepalive_if_required()
        self._advance()

    # ------------------------------------------------------------------------------------------------ limits

    def _head_late(self) -> None:
        if self.cycle is not None and not self._unread:
            self.transport.close()  # nothing was asked, and an answer would be taken for that to the next request
            return
        seconds = self._bounds.header_timeout_s
        self._refuse(ApiError("request_timeout", f"The request's headers did not arrive within {seconds:g} s."))

    def _body_late(self) -> None:
        seconds = self._bounds.body_timeout_s
        self._refuse(ApiError("request_timeout", f"The request body did not arrive within {seconds:g} s."))

    def _arm(self, delay_s: float, late: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: ApiError) -> None:
        """The connection's last answer, unless one is going out already. Its request sees a disconnect."""
        if self._phase is _Phase.LAST or self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                cycle.keep_alive = False
                self._forget_rest()
                return
            cycle.scope[REFUSED] = error.status  # type: ignore[typeddict-unknown-key]
            self._disconnect(cycle)
        else:
            self._answers.count(self._path, error.status)
        self.transport.write(self._raw_response(error))
        self._linger()

    def _raw_response(self, error: ApiError) -> bytes:
        body = error.body_for(self._path)
        headers = [
            *self.server_state.default_headers,
            *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", secrets.token_hex(16).encode()),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + body

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait.begin()

    def resume_writing(self) -> None:
        self._wait.end()
        super().resume_writing()
