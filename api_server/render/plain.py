"""The two routes of our own: /generate, one event per token with its timing, and /v1/completions/stream, text alone."""

from collections.abc import Callable
from typing import Final

from api_server.job import Job
from api_server.render.frame import SSE, Framing, finish_name, to_json
from api_server.schema.responses import Generated, Streamed, Usage
from api_server.text import Piece

FIRST: Final = "prefill_time_ms"
LATER: Final = "step_ms"


class GenerateRenderer:
    """Exactly one event per token. Tokens that come together share the time since the ones before them evenly. Text
    that is freed behind the last token is an event without a token's id."""

    def __init__(self, job: Job, clock: Callable[[], float], framing: Framing = SSE) -> None:
        """`clock` gives seconds; the first reading is the request's start."""
        self._job: Final = job
        self._clock: Final = clock
        self._framing: Final = framing
        self._started_s: Final = clock()
        self._last_s = self._started_s
        self._opened = False

    def head(self) -> bytes:
        return b""

    def openings(self, index: int) -> int:
        return 0

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        now_s = self._clock()
        step_ms = _ms((now_s - self._last_s) / max(1, len(piece.tokens)))
        self._last_s = now_s
        before, after, _ = self._framing
        events = bytearray()
        for text, token in zip(piece.texts, piece.tokens, strict=True):
            timing = (LATER, step_ms) if self._opened else (FIRST, self._prefill_ms(piece, now_s))
            self._opened = True
            events += b'%b{"token":%b,"token_id":%d,"%b":%b}%b' % (
                before, to_json(text), token, timing[0].encode(), to_json(timing[1]), after
            )  # fmt: skip
        if piece.rest:
            events += b'%b{"token":%b}%b' % (before, to_json(piece.rest), after)
        return bytes(events)

    def tail(self, usage: Usage) -> bytes:
        return self._framing.done

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        piece, now_s = pieces[0], self._clock()
        prefill_ms = self._prefill_ms(piece, now_s)
        total_ms = _ms(now_s - self._started_s)
        rid = self._job.submission.rid
        return to_json(Generated(rid, piece.text, piece.tokens, finish_name(piece), prefill_ms, total_ms, usage))

    def _prefill_ms(self, piece: Piece, now_s: float) -> float:
        """The engine's own figure; without one, the time until the token was here."""
        return _ms(now_s - self._started_s if piece.first is None else piece.first.prefill_s)


class StreamRenderer:
    """One event per piece that shows something. The last piece of a resumable stream is an event even if it shows
    nothing, so that a reader knows that it has everything."""

    def __init__(self, job: Job, *, resumable: bool = False, framing: Framing = SSE) -> None:
        self._job: Final = job
        self._framing: Final = framing
        self._resumable: Final = resumable

    def head(self) -> bytes:
        return b""

    def openings(self, index: int) -> int:
        return 0

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        text = piece.text
        if not text and not (self._resumable and piece.finish is not None):
            return b""
        return b'%b{"token":%b}%b' % (self._framing.before, to_json(text), self._framing.after)

    def tail(self, usage: Usage) -> bytes:
        return self._framing.done

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        piece = pieces[0]
        return to_json(Streamed(self._job.submission.rid, piece.text, finish_name(piece), usage))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
