"""The way of an admitted request: submit, take what comes, turn it into text, render it, send it.

The engine's acceptance is awaited before a response begins, so that whatever is refused has its real status. Leaving,
by whatever way, closes the engine's stream, and that is the abort.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Final, Never

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from api_server.config import Config
from api_server.deadline import Deadline
from api_server.disconnect import until_disconnect
from api_server.errors import ApiError
from api_server.form import EVENTS, Form
from api_server.frontend import Frontend, frontend
from api_server.job import Job
from api_server.long_body import LongBody
from api_server.render import Renderer
from api_server.shortcut import Shortcut
from api_server.sse import EventStream
from api_server.stream import Stream
from api_server.teller import Stop, Teller
from api_server.text import Answer, Piece, join
from protocol.messages import Delta

logger: Final = logging.getLogger("tokenwire.reply")

MakeTeller = Callable[[Stop], Teller]


async def reply(request: Request, job: Job, renderer: Renderer, form: Form = EVENTS) -> ASGIApp:
    """The response to an admitted request: a stream in `form`, which is the renderer's, too, or one body. Raises
    ApiError while there is still a status to set."""
    if job.stream:
        return await reply_stream(request, job, partial(Teller, job, renderer), form)
    body = await until_disconnect(request, _whole(frontend(request), request.state.key_digest, job, renderer))
    return Response(body, media_type="application/json") if isinstance(body, bytes) else LongBody(body)


async def reply_stream(request: Request, job: Job, teller: MakeTeller, form: Form = EVENTS) -> ASGIApp:
    """The same for an answer that streams."""
    with ExitStack() as owned:
        opening = open_chunks(frontend(request), request.state.key_digest, job, teller, owned)
        chunks = await until_disconnect(request, opening)
        owned.pop_all()  # from here on it is for the chunks to close
        return EventStream(chunks, job.submission.rid, form, express=chunks.express)


async def open_chunks(front: Frontend, key: bytes, job: Job, teller: MakeTeller, owner: ExitStack) -> "Chunks":
    """The chunks of a stream that the engine has accepted. What is behind them has its owner before this task ends,
    because a task's result is lost if who waits for it is cancelled just then."""
    deadline = begin_deadline(front.config, job)
    owner.callback(deadline.close)
    stream = owner.enter_context(await deadline.wait(lambda: front.engine.submit(job.submission, key)))
    return Chunks(stream, teller(stream.stop), deadline, interval_of(front.config, job))


async def _whole(front: Frontend, key: bytes, job: Job, renderer: Renderer) -> bytes | Iterator[bytes]:
    """The body of a response that does not stream."""
    deadline = begin_deadline(front.config, job)
    answer = Answer(job)
    pieces: dict[int, list[Piece]] = {}
    with ExitStack() as owned:
        owned.callback(deadline.close)
        stream = owned.enter_context(await deadline.wait(lambda: front.engine.submit(job.submission, key)))
        while not answer.finished:
            news = await deadline.wait(stream.take)
            for index, delta in news:
                if (piece := answer.feed(index, delta)) is not None:
                    pieces.setdefault(index, []).append(piece)
                    if piece.stopped:
                        stream.stop(index, piece.pos)
            _heed(news, deadline)
    return renderer.whole([join(pieces[index]) for index in sorted(pieces)], answer.usage)


def begin_deadline(config: Config, job: Job) -> Deadline:
    """The time limits of an answer that begins now."""
    whole_s = min(config.request_timeout_s, job.timeout_s or config.request_timeout_s)
    return Deadline(config.first_token_timeout_s, whole_s)


def interval_of(config: Config, job: Job) -> float:
    """Seconds that have to be between two chunks."""
    return config.stream_interval_ms / 1000 if job.interval_s is None else job.interval_s


async def next_told(stream: Stream, teller: Teller, deadline: Deadline) -> bytes:
    """What the engine has produced since the last call, as it is told; it may be nothing yet."""
    news = await deadline.wait(stream.take)
    told = b"".join([teller.tell(index, delta) for index, delta in news])
    _heed(news, deadline)
    return told


def _heed(news: list[tuple[int, Delta]], deadline: Deadline) -> None:
    if news and news[-1][1].prompt is None:  # tokens come last
        deadline.first_token()


class Chunks(AsyncGenerator[bytes, None]):
    """The writes of an event stream, each as much as there is when the one before it has gone out, and `interval_s` are
    over. First tokens and last ones don't wait.

    A class and not an `async def` with `yield`: closing such a generator before its first step runs none of its body,
    and a client may leave just then.
    """

    __slots__ = ("_begun", "_deadline", "_ended", "_interval_s", "_ready", "_stream", "_teller")

    def __init__(self, stream: Stream, teller: Teller, deadline: Deadline, interval_s: float = 0.0) -> None:
        self._stream: Final = stream
        self._teller: Final = teller
        self._deadline: Final = deadline
        self._interval_s: Final = interval_s
        self._ready = b""  # to go out before all else
        self._begun = False
        self._ended = False

    async def more(self) -> bool:
        """Before the first chunk is asked for: looks at what the engine has so far. False if the answer is complete,
        and nothing of it is left to be told."""
        told = await next_told(self._stream, self._teller, self._deadline)
        if self._teller.finished:
            self._end()
            told = told and told + self._teller.tail()
        self._ready = told
        return bool(told) or not self._ended

    async def asend(self, value: None) -> bytes:
        if self._ready:
            ready, self._ready = self._ready, b""
            return ready
        if self._ended:
            raise StopAsyncIteration
        try:
            if not self._begun:
                self._begun = True
                if head := self._teller.head():
                    return head
            return await self._next()
        except asyncio.CancelledError:
            self._end(left=True)
            raise
        except BaseException:
            self._end()
            raise

    async def _next(self) -> bytes:
        """The next write that is not empty."""
        teller = self._teller
        while True:
            data = await next_told(self._stream, teller, self._deadline)
            if teller.finished:
                self._end()
                return data + teller.tail()
            if data:
                if self._interval_s:
                    self._stream.hold(self._interval_s)
                return data

    def express(self, shortcut: Shortcut) -> None:
        """From now on tokens go out through `shortcut` as they come, wherever the chunks before them have gone out and
        there is room: without a turn of the event loop, which costs more than all the rest of a token's way."""
        stream, tell = self._stream, self._teller.tell

        def take(index: int, delta: Delta) -> bool:
            if not shortcut.open():
                return False
            try:
                shortcut.write(tell(index, delta))
                if self._interval_s:
                    stream.hold(self._interval_s)
            except Exception:
                logger.exception("stream %s failed", stream.rid)
                stream.fail(ApiError("internal_error", "The server failed to complete this stream."))
            return True

        stream.express(take)

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Never:
        self._end(left=True)
        raise typ if val is None or not isinstance(val, BaseException) else val

    def _end(self, *, left: bool = False) -> None:
        """`left` says that the reader has gone, and may come back."""
        self._ended = True
        self._deadline.close()
        if left:
            self._stream.leave()
        else:
            self._stream.close()
