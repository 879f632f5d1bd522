"""The way of an admitted request: submit, take what comes, turn it into text, render it, send it.

The engine's acceptance is awaited before a response begins, so that whatever is refused has its real status. Leaving,
by whatever way, closes the engine's stream, and that is the abort.
"""

import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
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
from api_server.text import Answer, Piece, join
from protocol.messages import Delta

logger: Final = logging.getLogger("tokenwire.reply")


async def reply(request: Request, job: Job, renderer: Renderer, form: Form = EVENTS) -> ASGIApp:
    """The response to an admitted request: a stream in `form`, which is the renderer's, too, or one body. Raises
    ApiError while there is still a status to set."""
    front = frontend(request)
    key: bytes = request.state.key_digest
    with ExitStack() as owned:
        if not job.stream:
            body = await until_disconnect(request, _whole(front, key, job, renderer))
            return Response(body, media_type="application/json") if isinstance(body, bytes) else LongBody(body)
        chunks = await until_disconnect(request, open_chunks(front, key, job, renderer, owned))
        owned.pop_all()  # from here on it is for the chunks to close
        return EventStream(chunks, job.submission.rid, form, express=chunks.express)


async def open_chunks(front: Frontend, key: bytes, job: Job, renderer: Renderer, owner: ExitStack) -> "Chunks":
    """The chunks of a stream that the engine has accepted. What is behind them has its owner before this task ends,
    because a task's result is lost if who waits for it is cancelled just then."""
    deadline = _deadline(front.config, job)
    owner.callback(deadline.close)
    stream = owner.enter_context(await deadline.wait(lambda: front.engine.submit(job.submission, key)))
    return Chunks(stream, job, renderer, deadline, _interval_s(front.config, job))


async def _whole(front: Frontend, key: bytes, job: Job, renderer: Renderer) -> bytes | Iterator[bytes]:
    """The body of a response that does not stream."""
    deadline = _deadline(front.config, job)
    answer = Answer(job)
    pieces: dict[int, list[Piece]] = {}
    with ExitStack() as owned:
        owned.callback(deadline.close)
        stream = owned.enter_context(await deadline.wait(lambda: front.engine.submit(job.submission, key)))
        while not answer.finished:
            for piece in await next_pieces(stream, answer, deadline):
                pieces.setdefault(piece.index, []).append(piece)
    return renderer.whole([join(pieces[index]) for index in sorted(pieces)], answer.usage)


def _deadline(config: Config, job: Job) -> Deadline:
    """Begins now."""
    whole_s = min(config.request_timeout_s, job.timeout_s or config.request_timeout_s)
    return Deadline(config.first_token_timeout_s, whole_s)


def _interval_s(config: Config, job: Job) -> float:
    return config.stream_interval_ms / 1000 if job.interval_s is None else job.interval_s


async def next_pieces(stream: Stream, answer: Answer, deadline: Deadline) -> list[Piece]:
    """What the engine has produced since the last call, as text. Tells the engine where a stop string was found."""
    pieces = []
    news = await deadline.wait(stream.take)
    for index, delta in news:
        piece = answer.feed(index, delta)
        if piece is None:
            continue
        if piece.stopped:
            stream.stop(index, piece.pos)
        pieces.append(piece)
    if news and news[-1][1].prompt is None:  # tokens come last
        deadline.first_token()
    return pieces


class Chunks(AsyncGenerator[bytes, None]):
    """The writes of an event stream, each as much as there is when the one before it has gone out, and `interval_s` are
    over. First tokens and last ones don't wait.

    A class and not an `async def` with `yield`: closing such a generator before its first step runs none of its body,
    and a client may leave just then.
    """

    __slots__ = ("_answer", "_begun", "_counts", "_deadline", "_ended", "_interval_s", "_renderer", "_stream")

    def __init__(
        self, stream: Stream, job: Job, renderer: Renderer, deadline: Deadline, interval_s: float = 0.0
    ) -> None:
        self._stream: Final = stream
        self._answer: Final = Answer(job)
        self._renderer: Final = renderer
        self._deadline: Final = deadline
        self._counts: Final = job.continuous_usage
        self._interval_s: Final = interval_s
        self._begun = False
        self._ended = False

    async def asend(self, value: None) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        try:
            if not self._begun:
                self._begun = True
                if head := self._renderer.head():
                    return head
            return await self._next()
        except BaseException:
            self._end()
            raise

    async def _next(self) -> bytes:
        """The next write that is not empty."""
        answer, renderer = self._answer, self._renderer
        while True:
            pieces = await next_pieces(self._stream, answer, self._deadline)
            chunks = self._counted(pieces) if self._counts else [renderer.chunk(piece, None) for piece in pieces]
            if answer.finished:
                self._end()
                return b"".join([*chunks, renderer.tail(answer.usage)])
            if data := b"".join(chunks):
                if self._interval_s:
                    self._stream.hold(self._interval_s)
                return data

    def express(self, shortcut: Shortcut) -> None:
        """From now on tokens go out through `shortcut` as they come, wherever the chunks before them have gone out and
        there is room: without a turn of the event loop, which costs more than all the rest of a token's way."""

        stream, answer, render = self._stream, self._answer, self._renderer.chunk

        def take(index: int, delta: Delta) -> bool:
            if not shortcut.open():
                return False
            try:
                if (piece := answer.feed(index, delta)) is not None:
                    shortcut.write(render(piece, answer.usage if self._counts else None))
                    if self._interval_s:
                        stream.hold(self._interval_s)
                    if piece.stopped:
                        stream.stop(index, piece.pos)
            except Exception:
                logger.exception("stream %s failed", stream.rid)
                stream.fail(ApiError("internal_error", "The server failed to complete this stream."))
            return True

        stream.express(take)

    def _counted(self, pieces: list[Piece]) -> list[bytes]:
        """The chunks of pieces that came together, each with the usage up to it."""
        chunks, usage = [], self._answer.usage
        later = sum(len(piece.tokens) for piece in pieces)
        for piece in pieces:
            later -= len(piece.tokens)
            chunks.append(self._renderer.chunk(piece, usage.before(later)))
        return chunks

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Never:
        self._end()
        raise typ if val is None or not isinstance(val, BaseException) else val

    def _end(self) -> None:
        self._ended = True
        self._deadline.close()
        self._stream.close()
