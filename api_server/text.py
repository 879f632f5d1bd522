"""From deltas to pieces of visible text: detokenising, stop strings, finish reasons, and the counts for usage.

What is visible after a token depends on the tokens up to it alone, never on how they were grouped into deltas. Pure;
knows nothing of HTTP or JSON.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from api_server.detokenize import Detokenizer
from api_server.job import Job
from api_server.schema.responses import PromptTokensDetails, Usage
from api_server.stop import Hit, StopMatcher
from protocol.messages import Delta, FinishReason, FirstToken, TokenLogprobs
from protocol.prompt_logprobs import PromptLogprobs


class Piece(Struct, gc=False):
    """What one delta adds to a sequence. `index` is prompt * n + choice; `pos` counts its output tokens, these
    included.

    `texts` is what became visible with each token, `rest` what became visible only because the sequence ended, if the
    engine told that after the last token; joined they are the text. `offsets` is where each token begins in the
    sequence's decoded text, in characters. `stopped` says that a stop string ended the sequence at `pos`, which the
    engine does not know yet.

    `prompt_logprobs` are portions of the log probabilities of the sequence's prompt. They come before any token of it
    or its siblings, in pieces with nothing else.
    """

    index: int
    texts: list[str]
    tokens: list[int]
    pos: int
    rest: str = ""
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    stopped: bool = False
    logprobs: list[TokenLogprobs] | None = None
    offsets: list[int] | None = None
    first: FirstToken | None = None
    prompt_logprobs: Sequence[PromptLogprobs] = ()

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 and not self.rest else "".join(self.texts) + self.rest


class SequenceText:
    """One sequence: its detokenizer, its stop strings, and how far it has come."""

    __slots__ = ("_detokenizer", "_ends", "_index", "_length", "_matcher", "_min_tokens", "finished", "pos")

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        matcher: StopMatcher | None,
        *,
        min_tokens: int,
        ends: frozenset[int] | None,
    ) -> None:
        """`ends` are the model's ends of sequence, which end a text and are no part of it, like the tokens that the
        request stops at; None if they count as text (include_stop_str_in_output)."""
        self._index: Final = index
        self._detokenizer: Final = detokenizer
        self._matcher: Final = matcher
        self._min_tokens: Final = min_tokens
        self._ends: Final = ends
        self._length = 0  # of the decoded text, held-back characters included
        self.pos = 0
        self.finished = False

    def feed(self, delta: Delta) -> Piece | None:
        """None once the sequence has finished: what comes after a stop string is nobody's."""
        if self.finished:
            return None
        if len(delta.tokens) == 1 and delta.finish is None and delta.logprobs is None:
            return self._one(delta)
        piece = Piece(self._index, [], delta.tokens, 0, first=delta.first, logprobs=delta.logprobs)
        if delta.logprobs is not None:
            piece.offsets = []
        stop = self._decode(delta, piece)
        if delta.finish is not None and not delta.tokens:
            piece.rest, stop = self._show(self._detokenizer.flush(), ends=True)
        piece.pos = self.pos
        if stop is not None:
            self._cut(piece, stop)
        elif delta.finish is not None:
            piece.finish = delta.finish
            piece.stop_reason = delta.stop_token
        self.finished = piece.finish is not None
        return piece

    def _one(self, delta: Delta) -> Piece:
        """The same for what nearly every delta is: one token that is not the last."""
        text, stop = self._detokenizer.step(delta.tokens[0]), None
        self._length += len(text)
        self.pos += 1
        if self._matcher is not None:
            text, stop = self._show(text, ends=False)
        piece = Piece(self._index, [text], delta.tokens, self.pos, first=delta.first)
        if stop is not None:
            self._cut(piece, stop)
            self.finished = True
        return piece

    def _decode(self, delta: Delta, piece: Piece) -> str | None:
        """Adds the visible text of each token to `piece`, up to the stop string that is found, which is returned."""
        last = len(delta.tokens) - 1 if delta.finish is not None else -1
        silent = last if last >= 0 and self._ended_by(delta) else -1
        texts, offsets, step = piece.texts, piece.offsets, self._detokenizer.step
        for i, token in enumerate(delta.tokens):
            text = "" if i == silent else step(token)
            if offsets is not None:
                offsets.append(self._length)
            if i == last:
                text += self._detokenizer.flush()
            self._length += len(text)
            self.pos += 1
            if self._matcher is None:
                texts.append(text)
                continue
            shown, stop = self._show(text, ends=i == last)
            texts.append(shown)
            if stop is not None:
                return stop
        return None

    def _ended_by(self, delta: Delta) -> bool:
        """Its last token ended the sequence, and is not to be seen. An output that is complete by its grammar ends with
        a token that is text."""
        if delta.finish is not FinishReason.STOP or self._ends is None:
            return False
        return delta.stop_token is not None or delta.tokens[-1] in self._ends

    def _show(self, text: str, *, ends: bool) -> tuple[str, str | None]:
        """What becomes visible with `text`, decoded up to `pos`, and the stop string that is complete with it. `ends`:
        no text follows."""
        matcher = self._matcher
        if matcher is None:
            return text, None
        shown = matcher.feed(text, armed=self.pos > self._min_tokens)
        if isinstance(shown, Hit):
            return shown
        return (shown + matcher.flush() if ends else shown), None

    def _cut(self, piece: Piece, stop: str) -> None:
        count = len(piece.texts)
        piece.finish, piece.stop_reason, piece.stopped = FinishReason.STOP, stop, True
        piece.tokens = piece.tokens[:count]
        piece.logprobs = piece.logprobs and piece.logprobs[:count]


class Answer:
    """All sequences of one request."""

    __slots__ = ("_cached", "_n", "_prompt_only", "_prompt_tokens", "_sequences", "_unfinished")

    def __init__(self, job: Job) -> None:
        submission = job.submission
        self._prompt_only: Final = job.prompt_only
        self._n: Final = submission.n
        self._prompt_tokens: Final = sum(map(len, submission.prompts))
        self._cached = [0] * len(submission.prompts)
        self._sequences: Final = [
            SequenceText(
                prompt_index * submission.n + choice,
                job.vocabulary.detokenizer(prompt, skip_special=job.skip_special_tokens, visible=job.visible),
                StopMatcher(job.stop, include=job.include_stop) if job.stop else None,
                min_tokens=submission.sampling.min_tokens,
                ends=None if job.include_stop else job.ends,
            )
            for prompt_index, prompt in enumerate(submission.prompts)
            for choice in range(submission.n)
        ]
        self._unfinished = len(self._sequences)

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    @property
    def usage(self) -> Usage:
        """So far."""
        completion = sum(sequence.pos for sequence in self._sequences)
        return Usage(
            self._prompt_tokens,
            completion,
            self._prompt_tokens + completion,
            PromptTokensDetails(sum(self._cached)),
        )

    def position(self, index: int) -> int:
        """Output tokens of a sequence so far."""
        return self._sequences[index].pos

    def feed(self, index: int, delta: Delta) -> Piece | None:
        """What the delta adds to sequence `index`; None if that one has ended already."""
        if self._prompt_only and delta.prompt is None:
            delta = Delta(delta.handle, 0, [], FinishReason.LENGTH, first=delta.first, logprobs=delta.logprobs and [])
        piece = self._sequences[index].feed(delta)
        if piece is None:
            return None
        if delta.prompt is not None:
            piece.prompt_logprobs = (delta.prompt,)
        if piece.finish is not None:
            self._unfinished -= 1
        if piece.first is not None and index % self._n == 0:  # siblings fork from the first choice's prefill
            self._cached[index // self._n] = piece.first.cached_tokens
        return piece


def join(pieces: Sequence[Piece]) -> Piece:
    """The whole of one sequence, from its pieces in order."""
    last = pieces[-1]
    whole = Piece(last.index, [], [], last.pos, last.rest, last.finish, last.stop_reason)
    whole.first = next((piece.first for piece in pieces if piece.first is not None), None)
    whole.prompt_logprobs = [portion for piece in pieces for portion in piece.prompt_logprobs]
    if last.logprobs is not None:
        whole.logprobs, whole.offsets = [], []
    for piece in pieces:
        whole.texts += piece.texts
        whole.tokens += piece.tokens
        if whole.logprobs is not None and whole.offsets is not None:
            whole.logprobs += piece.logprobs or []
            whole.offsets += piece.offsets or []
    return whole
