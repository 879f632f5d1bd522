"""A stream, of events or of lines, as a raw ASGI response: one send per chunk, and no stream that outlives its client.

Starlette's StreamingResponse is not used: it depends on the server's ASGI version for noticing a disconnect, and after
one uvicorn's `send` returns at once, so that a generator without another await would spin for ever. Here `receive` is
watched for as long as the stream runs, and leaving, however it happens, closes the generator, whose own `finally`
aborts the request. Knows nothing of tokens.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final

from starlette.types import Receive, Scope, Send

from api_server.errors import ApiError
from api_server.form import EVENTS, Form
from api_server.shortcut import Shortcut, shortcut_of

logger: Final = logging.getLogger("tokenwire.sse")

YIELD_EVERY: Final = 64  # sends; a generator that always has something must still let others run
HEADERS: Final = (
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """Sends what `chunks` yields, each as one write of whole events in `form`, and ends the body when it ends.

    An ApiError from `chunks` becomes an error event; any other exception is logged and becomes one, too. A cancelled
    task (the server's shutdown) tells the client so. Used once.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        stream_id: str,
        form: Form = EVENTS,
        express: Callable[[Shortcut], None] | None = None,
    ) -> None:
        """`express` is for chunks that know how to use a shortcut, once their first one has been sent."""
        self._chunks = chunks
        self._stream_id = stream_id
        self._form = form
        self._express = express
        self._finished = False
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        interval_s = scope["app"].state.frontend.config.keepalive_interval_s
        keepalive = Keepalive(send, self._form.keepalive, interval_s)
        watcher = asyncio.create_task(self._watch(receive, task))
        try:
            try:
                last = await self._pump(send, keepalive, shortcut_of(scope))
            except asyncio.CancelledError:
                task.uncancel()
                last = self._form.error(ApiError("draining", "The server shut down before this stream was complete."))
            finally:
                self._finished = True
                keepalive.stop()
                await self._chunks.aclose()
            if not self._gone:
                await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            watcher.cancel()

    async def _pump(self, send: Send, keepalive: "Keepalive", shortcut: Shortcut | None) -> bytes:
        """Sends head and chunks. Returns what the body ends with."""
        media_type = (b"content-type", self._form.media_type.encode())
        headers = [media_type, *HEADERS, (b"x-stream-id", self._stream_id.encode())]
        sends = 0
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            keepalive.start()
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                keepalive.sent()
                sends += 1
                if sends == 1 and shortcut is not None and self._express is not None:
                    shortcut.tell(keepalive.sent)
                    self._express(shortcut)
                if sends % YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        except ApiError as error:
            return self._form.error(error)
        except Exception:
            logger.exception("stream %s failed", self._stream_id)
            return self._form.error(ApiError("internal_error", "The server failed to complete this stream."))
        return b""

    async def _watch(self, receive: Receive, task: asyncio.Task[None]) -> None:
        """Ends the stream when the client has left. After the last byte, `receive` says so in any case."""
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._finished:
            self._gone = True
            task.cancel()


class Keepalive:
    """Breaks a stream's silence with `comment`, if there is one. Costs a token one look at the clock, and a stream one
    timer."""

    __slots__ = ("_beat", "_comment", "_interval_s", "_last_s", "_loop", "_send", "_timer")

    def __init__(self, send: Send, comment: bytes, interval_s: float) -> None:
        self._send = send
        self._comment = comment
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.sent()
        if self._comment:
            self._timer = self._loop.call_later(self._interval_s, self._look)

    def sent(self) -> None:
        """Something else was sent just now."""
        self._last_s = self._loop.time()

    def stop(self) -> None:
        """Nothing is sent after this."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._beat is not None:
            self._beat.cancel()

    def _look(self) -> None:
        if self._loop.time() - self._last_s >= self._interval_s:
            if self._beat is None or self._beat.done():  # else the reader has stalled, and would get two
                self._beat = self._loop.create_task(self._say())
            self.sent()
        self._timer = self._loop.call_at(self._last_s + self._interval_s, self._look)

    async def _say(self) -> None:
        await self._send({"type": "http.response.body", "body": self._comment, "more_body": True})
