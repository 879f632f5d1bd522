"""From what the engine says of a request to the bytes of its stream: text and rendering together, delta by delta.

A resumable stream's events are numbered by what its reader has then seen: output tokens, of each choice. What is seen
after a number of tokens depends on those tokens alone, so a stream is resumed by saying all of it again from the
engine's log, without what was seen.
"""

from collections.abc import Callable, Sequence
from typing import Final

from api_server.job import Job
from api_server.render import Renderer, ResumableRenderer
from api_server.text import Answer, Piece
from protocol.messages import Delta

Stop = Callable[[int, int], None]

EVENT_END: Final = b"\n\n"  # nowhere else in an event: its JSON has no line ends


class Teller:
    """Tells all sequences of one request."""

    __slots__ = ("_answer", "_counts", "_renderer", "_stop")

    def __init__(self, job: Job, renderer: Renderer, stop: Stop) -> None:
        """`stop` is told which sequence a stop string ended, and at which output position."""
        self._answer: Final = Answer(job)
        self._renderer: Final = renderer
        self._counts: Final = job.continuous_usage
        self._stop: Final = stop

    @property
    def finished(self) -> bool:
        return self._answer.finished

    def head(self) -> bytes:
        """What goes out before all else; often nothing."""
        return self._renderer.head()

    def tell(self, index: int, delta: Delta) -> bytes:
        """What the delta adds, which may be nothing."""
        answer = self._answer
        piece = answer.feed(index, delta)
        if piece is None:
            return b""
        if piece.stopped:
            self._stop(index, piece.pos)
        return self._renderer.chunk(piece, answer.usage if self._counts else None)

    def tail(self) -> bytes:
        """What follows the last delta."""
        return self._renderer.tail(self._answer.usage)


class NumberedTeller(Teller):
    """Tells a resumable request from where its reader has come to, and numbers the events."""

    __slots__ = ("_announces", "_held", "_latches", "_opened", "_openings", "_resumes", "_rid", "_skip", "_told")

    def __init__(
        self,
        job: Job,
        renderer: ResumableRenderer,
        stop: Stop,
        seen: Sequence[int] | None = None,
        *,
        announces: bool = False,
    ) -> None:
        """`seen` are the output tokens of each sequence that the reader has, and so all that comes before the first of
        them; None for one that has nothing. With `announces`, the first thing that it gets is a number."""
        super().__init__(job, renderer, stop)
        self._openings: Final = renderer.openings
        self._opened = False
        size = len(job.submission.prompts) * job.submission.n
        self._rid: Final = job.submission.rid.encode()
        self._announces: Final = announces
        self._resumes: Final = seen is not None
        self._skip: Final = list(seen or [0] * size)
        self._told: Final = [0] * size
        # A grammar's natural end is known a step after its token, and has to be told with it.
        self._latches: Final = job.submission.sampling.grammar is not None
        self._held: Final[dict[int, Delta]] = {}

    def head(self) -> bytes:
        return b"id: %b%b" % (self._number(), EVENT_END) if self._announces else b""

    def tell(self, index: int, delta: Delta) -> bytes:
        if self._latches and delta.prompt is None:
            delta = self._latched(index, delta)
        seen = min(self._skip[index], len(delta.tokens))
        if seen and seen == len(delta.tokens):
            self._say(index, delta)
            self._skip[index] -= seen
            return b""
        if seen:
            head, delta = _split(delta, seen)
            self._say(index, head)
            self._skip[index] = 0
        if not delta.tokens and delta.finish is None and delta.prompt is None:
            return b""
        return self._say(index, delta)

    def _say(self, index: int, delta: Delta) -> bytes:
        """The numbered events of a delta."""
        if delta.prompt is not None:
            portion = super().tell(index, delta)
            return b"" if self._resumes else portion
        opening = b"" if self._opened else self._open()
        events = super().tell(index, delta).split(EVENT_END)[:-1]
        told, end = [opening], self._answer.position(index)
        for event in events[:-1]:  # where there are several, each is a token's
            self._told[index] = min(self._told[index] + 1, end)
            told.append(self._numbered(event))
        self._told[index] = end
        told += [self._numbered(event) for event in events[-1:]]
        return b"".join(told)

    def _open(self) -> bytes:
        """All that comes before the first token of any sequence. Who has seen the number has seen all of it."""
        self._opened = True
        events: list[bytes] = []
        for index in range(len(self._told)):
            count = self._openings(index)
            piece = Piece(index, [], [], 0)
            events += self._renderer.chunk(piece, self._answer.usage if self._counts else None).split(EVENT_END)[:count]
        if self._resumes or not events:
            return b""
        return b"".join(event + EVENT_END for event in events[:-1]) + self._numbered(events[-1])

    def _numbered(self, event: bytes) -> bytes:
        return b"id: %b\n%b%b" % (self._number(), event, EVENT_END)

    def _number(self) -> bytes:
        return b"%b.%b" % (self._rid, b".".join(b"%d" % count for count in self._told))

    def _latched(self, index: int, delta: Delta) -> Delta:
        """The delta with the token that was held back before it, and without its own last one unless that is the end
        of the sequence."""
        if (held := self._held.pop(index, None)) is not None:
            delta = _joined(held, delta)
        if delta.finish is None and delta.tokens:
            delta, self._held[index] = _split(delta, len(delta.tokens) - 1)
        return delta


def _split(delta: Delta, count: int) -> tuple[Delta, Delta]:
    """The first `count` tokens, and the others with the end."""
    logprobs = delta.logprobs
    head = Delta(delta.handle, delta.pos, delta.tokens[:count])
    rest = Delta(delta.handle, delta.pos + count, delta.tokens[count:], delta.finish, delta.stop_token)
    (head if count else rest).first = delta.first
    if logprobs is not None:
        head.logprobs, rest.logprobs = logprobs[:count], logprobs[count:]
    return head, rest


def _joined(earlier: Delta, later: Delta) -> Delta:
    logprobs = None if earlier.logprobs is None else earlier.logprobs + (later.logprobs or [])
    tokens, first = earlier.tokens + later.tokens, earlier.first or later.first
    return Delta(earlier.handle, earlier.pos, tokens, later.finish, later.stop_token, first, logprobs)
