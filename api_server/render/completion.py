"""Completions: `text_completion` objects, the same kind for a chunk and for the whole."""

from typing import Final

from msgspec import UNSET

from api_server.job import Job
from api_server.render.frame import FINISH_JSON, SSE, ChunkTemplate, Framing, finish_name, to_json
from api_server.render.logprobs import completion_logprobs
from api_server.schema.responses import Completion, CompletionChoice, Usage
from api_server.text import Piece

PLAIN_END: Final = b',"logprobs":null,"finish_reason":null}'


class CompletionRenderer:
    """With echo, a choice's prompt is a chunk of its own before its first token."""

    def __init__(self, job: Job, framing: Framing = SSE) -> None:
        self._job: Final = job
        self._n: Final = job.submission.n
        size = len(job.submission.prompts) * self._n
        self._template: Final = ChunkTemplate(job, "text_completion", framing)
        self._plain_open: Final = [self._template.open + b'{"index":%d,"text":' % i for i in range(size)]
        self._plain_close: Final = PLAIN_END + self._template.plain_close
        self._bare: Final = not (job.return_token_ids or job.continuous_usage)
        self._unopened: Final = set(range(size)) if job.echo or job.return_token_ids else set()

    def head(self) -> bytes:
        return b""

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
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

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        job = self._job
        choices = [
            CompletionChoice(
                piece.index,
                self._echo(piece.index) + piece.text,
                completion_logprobs(piece, job.vocabulary, len(self._echo(piece.index))),
                finish_name(piece),
                piece.stop_reason,
                piece.tokens if job.return_token_ids else UNSET,
                self._prompt(piece.index) if job.return_token_ids else UNSET,
            )
            for piece in pieces
        ]
        rid = job.submission.rid
        return to_json(Completion(rid, "text_completion", job.created, job.model, job.fingerprint, choices, usage))

    def _opening(self, piece: Piece, usage: Usage | None) -> bytes:
        """The prompt, as text or as token ids or both, once per choice, from before the piece's tokens."""
        index = piece.index
        usage = usage and usage.before(len(piece.tokens))
        self._unopened.discard(index)
        members = b',"logprobs":null,"finish_reason":null'
        if self._job.return_token_ids:
            members += b',"prompt_token_ids":' + to_json(self._prompt(index)) + b',"token_ids":[]'
        return self._choice(index, self._echo(index), members) + self._template.close(usage)

    def _choice(self, index: int, text: str, members: bytes) -> bytes:
        return self._plain_open[index] + to_json(text) + members + b"}"

    def _echo(self, index: int) -> str:
        return self._job.echo[index // self._n] if self._job.echo else ""

    def _prompt(self, index: int) -> list[int]:
        return self._job.submission.prompts[index // self._n]
