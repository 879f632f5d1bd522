"""Completions: `text_completion` objects, the same kind for a chunk and for the whole."""

from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from api_server.job import Job
from api_server.render import prompt as prompts
from api_server.render.frame import FINISH_JSON, SSE, ChunkTemplate, Framing, finish_name, to_json
from api_server.render.logprobs import completion_logprobs
from api_server.render.long import LongLists
from api_server.schema.responses import Completion, CompletionChoice, CompletionLogprobs, Usage
from api_server.text import Piece

PLAIN_END: Final = b',"logprobs":null,"finish_reason":null}'


class CompletionRenderer:
    """With echo, a choice's prompt is a chunk of its own before its first token. What is told of a prompt's log
    probabilities comes there, too, in as many chunks as it takes."""

    def __init__(self, job: Job, framing: Framing = SSE) -> None:
        self._job: Final = job
        self._n: Final = job.submission.n
        size = len(job.submission.prompts) * self._n
        self._template: Final = ChunkTemplate(job, "text_completion", framing)
        self._plain_open: Final = [self._template.open + b'{"index":%d,"text":' % i for i in range(size)]
        self._plain_close: Final = PLAIN_END + self._template.plain_close
        self._bare: Final = not (job.return_token_ids or job.continuous_usage)
        self._scored: Final = job.submission.sampling.prompt_logprobs is not None
        opens = job.echo or job.return_token_ids or self._scored
        self._unopened: Final = set(range(size)) if opens else set()

    def head(self) -> bytes:
        return b""

    def openings(self, index: int) -> int:
        return 1 if index in self._unopened else 0

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        if piece.prompt_logprobs:
            siblings = range(piece.index, piece.index + self._n)
            parts = prompts.slices(self._job, piece.index // self._n, piece.prompt_logprobs)
            return b"".join([self._part(part, siblings, usage) for part in parts])
        text = piece.text
        opening = self._opening(piece, usage) if piece.index in self._unopened else b""
        if self._bare and piece.finish is None and piece.logprobs is None:
            return opening + self._plain_open[piece.index] + to_json(text) + self._plain_close if text else opening
        tokens = piece.tokens if self._job.return_token_ids else None
        if not text and piece.finish is None and piece.logprobs is None and tokens is None:
            return opening
        base = len(self._echo(piece.index))
        members = b',"logprobs":%b,"finish_reason":%b' % (
            to_json(completion_logprobs(piece, self._job.vocabulary, base)),
            b"null" if piece.finish is None else FINISH_JSON[piece.finish],
        )
        if piece.finish is not None:
            members += b',"stop_reason":' + to_json(piece.stop_reason)
        if tokens is not None:
            members += b',"token_ids":' + to_json(tokens)
        return opening + self._choice(piece.index, text, members) + self._template.close(usage)

    def tail(self, usage: Usage) -> bytes:
        return self._template.tail(usage if self._job.include_usage else None)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes | Iterator[bytes]:
        job, lists = self._job, LongLists()
        choices = [
            CompletionChoice(
                piece.index,
                self._echo(piece.index) + piece.text,
                self._logprobs(piece, pieces, lists),
                finish_name(piece),
                piece.stop_reason,
                piece.tokens if job.return_token_ids else UNSET,
                self._prompt(piece.index) if job.return_token_ids else UNSET,
                UNSET
                if job.prompt_logprobs is None
                else lists.add(prompts.long_prompt_logprobs(job, self._slices(piece, pieces))),
            )
            for piece in pieces
        ]
        rid = job.submission.rid
        whole = Completion(rid, "text_completion", job.created, job.model, job.fingerprint, choices, usage)
        return lists.body(whole)

    # ------------------------------------------------------------------------------------------------ the prompt

    def _opening(self, piece: Piece, usage: Usage | None) -> bytes:
        """The prompt, as text or as token ids or both, once per choice, from before the piece's tokens."""
        index = piece.index
        usage = usage and usage.before(len(piece.tokens))
        if self._scored:  # a prompt of one token, of which there is nothing else to tell
            (part,) = prompts.slices(self._job, index // self._n, ())
            return self._part(part, range(index, index + 1), usage)
        return self._begun(index, self._echo(index), b',"logprobs":null', usage)

    def _part(self, part: prompts.Slice, indexes: range, usage: Usage | None) -> bytes:
        """A slice of a prompt, for each of its choices."""
        job = self._job
        text, logprobs = "", None
        if job.echo_offsets is not None:
            text, logprobs = prompts.echo_text(job, part), prompts.echo_logprobs(job, part)
        elif job.echo is not None and part.start == 0:
            text = job.echo[part.prompt]
        members = b',"logprobs":' + to_json(logprobs)
        if job.prompt_logprobs is not None:
            members += b',"prompt_logprobs":' + to_json(prompts.prompt_logprobs(job, part))
        return b"".join([self._begun(index, text, members, usage) for index in indexes])

    def _begun(self, index: int, text: str, members: bytes, usage: Usage | None) -> bytes:
        """A chunk before a choice's first token. Its first one has the prompt's token ids."""
        members += b',"finish_reason":null'
        if index in self._unopened:
            self._unopened.discard(index)
            if self._job.return_token_ids:
                members += b',"prompt_token_ids":' + to_json(self._prompt(index)) + b',"token_ids":[]'
        return self._choice(index, text, members) + self._template.close(usage)

    def _logprobs(self, piece: Piece, pieces: list[Piece], lists: LongLists) -> CompletionLogprobs | None:
        parts = self._slices(piece, pieces) if self._job.echo_offsets is not None else ()
        return prompts.long_logprobs(self._job, parts, piece, len(self._echo(piece.index)), lists)

    def _slices(self, piece: Piece, pieces: list[Piece]) -> list[prompts.Slice]:
        """All of a choice's prompt, whose log probabilities came with the first choice."""
        prompt = piece.index // self._n
        return prompts.slices(self._job, prompt, pieces[prompt * self._n].prompt_logprobs)

    # ------------------------------------------------------------------------------------------------ a choice

    def _choice(self, index: int, text: str, members: bytes) -> bytes:
        return self._plain_open[index] + to_json(text) + members + b"}"

    def _echo(self, index: int) -> str:
        return self._job.echo[index // self._n] if self._job.echo else ""

    def _prompt(self, index: int) -> list[int]:
        return self._job.submission.prompts[index // self._n]
