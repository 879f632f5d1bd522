"""uvicorn's HTTP protocol with an end to everything: headers, body, silence, and readers that have stopped reading.

httptools takes 64 MB of headers and uvicorn waits for ever for a silent client, for the rest of a body and for a reader
that takes no more bytes. This subclass counts and times what uvicorn leaves open, and answers with the OpenAI error
body where an answer is still possible. It relies on uvicorn's `HttpToolsProtocol` calling `send_400_response` for what
the parser refuses, keeping the newest request in `cycle` and waiting ones in `pipeline`, and starting every request
through `_start_asgi_task`; tests on real sockets hold it to that.
"""

import asyncio
import fcntl
import secrets
import struct
import sys
import termios
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api_server.config import Config
from api_server.errors import ApiError

PIPELINE_MAX: Final = 16  # requests that may wait behind one that is being answered
WRITE_BUFFER: Final = 16 << 10  # bytes kept per connection beyond the kernel's own, before a send waits
BODY_SLACK_S: Final = 1.0  # the application's own time limit comes first, and answers better
UNREAD_FACTOR: Final = 4  # an answered request's body is read on and dropped, up to so many times the limit
LINGER_S: Final = 1.0  # after a refusal: closing with unread bytes would reset the connection and lose the answer


class _Refused(Exception):
    """Stops the parser; `_refusal` says why."""


class _Phase(Enum):
    HEADERS = 0  # of the first request, or of one that has begun
    BODY = 1
    BETWEEN = 2  # the request is complete; the next has not begun


class BoundedHttp(HttpToolsProtocol):
    """One connection. `bounds` comes first, so that functools.partial makes uvicorn's protocol factory of it."""

    def __init__(self, bounds: Config, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bounds = bounds
        self._phase = _Phase.HEADERS
        self._timer: asyncio.TimerHandle | None = None
        self._messages = 0
        self._header_count = 0
        self._header_size = 0  # of the fields seen whole
        self._raw_size = 0  # read since headers or body began, less the first read of it
        self._refusal: ApiError | None = None
        self._refused = False
        self._stall: _Stall | None = None
        self._running: RequestResponseCycle | None = None  # the one that is being answered

    # ------------------------------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        super().connection_made(transport)
        self._arm(self._bounds.header_timeout_s, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unset_keepalive_if_required()  # uvicorn leaves it running after a reset
        self.resume_writing()
        if self._running is not None and self._running is not self.cycle:
            self._disconnect(self._running)  # uvicorn tells the newest request only, which may still wait its turn
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        before = (self._phase, self._messages)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if before == (self._phase, self._messages):
            self._raw_size += len(data)
        if self._phase is _Phase.HEADERS and self._raw_size > self._bounds.max_header_size:
            self._refuse(self._headers_too_large())
        elif self._phase is _Phase.BODY:
            self._check_body_size()
        elif self._phase is _Phase.BETWEEN and self.cycle.response_complete and not self._waits():
            self._arm(self._bounds.header_timeout_s, self._headers_late)  # bytes that begin no request

    def _waits(self) -> bool:
        """Some time limit is running."""
        return self._timer is not None or self.timeout_keep_alive_task is not None

    # ------------------------------------------------------------------------------------------------ parser's calls

    def on_message_begin(self) -> None:
        self._phase = _Phase.HEADERS
        self._messages += 1
        self._header_count = self._header_size = self._raw_size = 0
        if self._timer is None:
            self._arm(self._bounds.header_timeout_s, self._headers_late)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also called for the trailers of a chunked body, which count on."""
        self._header_count += 1
        self._count_header(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._phase = _Phase.BODY
        self._raw_size = 0
        self._disarm()
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINE_MAX:
            raise _Refused
        if not self.parser.should_upgrade():
            self._arm(self._bounds.body_timeout_s + BODY_SLACK_S, self._body_late)

    def on_message_complete(self) -> None:
        self._phase = _Phase.BETWEEN
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what the parser refuses."""
        self._refuse(self._refusal or ApiError("invalid_request_error", msg))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    # ------------------------------------------------------------------------------------------------ limits

    def _count_header(self, size: int) -> None:
        self._header_size += size
        if self._header_size > self._bounds.max_header_size or self._header_count > self._bounds.max_headers:
            self._refusal = self._headers_too_large()
            raise _Refused

    def _headers_too_large(self) -> ApiError:
        size, count = self._bounds.max_header_size, self._bounds.max_headers
        return ApiError("headers_too_large", f"The request's headers exceed {size} bytes or {count} fields.")

    def _check_body_size(self) -> None:
        """On the wire, chunk framing included: what the application counts is only what is inside the chunks."""
        limit = self._bounds.max_body_size
        if self.cycle.response_complete:
            limit *= UNREAD_FACTOR
        if self._raw_size > limit:
            self._refuse(ApiError("request_too_large", f"The request body is larger than {limit} bytes."))

    def _headers_late(self) -> None:
        if self._phase is _Phase.BETWEEN:
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
        """The connection's last answer, where one fits; then it ends. A request that was begun sees a disconnect."""
        self._disarm()
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        cycle = self.cycle
        answered = cycle is not None and cycle.response_complete
        if self.pipeline or (cycle is not None and (cycle.response_started and not answered)):
            self.transport.close()  # in the middle of another answer
            return
        if self._phase is _Phase.BODY and answered:
            self.transport.close()  # this request has its answer; only its body never ended
            return
        if cycle is not None and not answered:
            self._disconnect(cycle)
        self.transport.write(self._raw_response(error))
        self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def _disconnect(self, cycle: RequestResponseCycle) -> None:
        """What a request sees of its connection's end."""
        cycle.disconnected = not cycle.response_complete
        cycle.message_event.set()

    def _raw_response(self, error: ApiError) -> bytes:
        body = error.body
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", secrets.token_hex(16).encode()),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + body

    # ------------------------------------------------------------------------------------------------ stalled readers

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = _Stall(self.transport, self.loop, self._bounds.stall_timeout_s)

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.over()
            self._stall = None
        super().resume_writing()


class _Stall:
    """A full write buffer: ends the connection once the peer has taken no byte for `timeout_s`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._timeout_s = timeout_s
        self._unread = self._count()
        self._moved_s = loop.time()
        self._timer = loop.call_later(timeout_s / 4, self._look)

    def over(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        unread = self._count()
        if unread != self._unread:
            self._unread, self._moved_s = unread, now
        elif now - self._moved_s >= self._timeout_s:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(self._timeout_s / 4, self._look)

    def _count(self) -> int:
        """Bytes that the peer has not acknowledged, ours and the kernel's. The kernel tells of room only in large
        steps, so the buffer alone would take a slow reader for one that has stopped."""
        kernel = 0
        if (socket := self._transport.get_extra_info("socket")) is not None:
            (kernel,) = struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
        return self._transport.get_write_buffer_size() + int(kernel)


def _unchunked(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """HTTP/1.0 knows no chunks, and uvicorn sends them all the same: there the end of the connection ends the body."""

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
