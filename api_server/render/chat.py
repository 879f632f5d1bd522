"""Chat completions: `chat.completion.chunk` objects, and the `chat.completion` object."""

from typing import Final

from msgspec import UNSET

from api_server.job import Job
from api_server.render.frame import FINISH_JSON, SSE, ChunkTemplate, Framing, finish_name, to_json
from api_server.render.logprobs import chat_logprobs
from api_server.schema.responses import AssistantMessage, ChatChoice, ChatCompletion, Usage
from api_server.text import Piece

ROLE: Final = b'{"role":"assistant","content":""}'
PLAIN_END: Final = b'},"logprobs":null,"finish_reason":null}'


class ChatRenderer:
    """A choice's first chunk gives its role and comes with its first token, so that the time to the first event is the
    time to the first token. The finish reason rides on the chunk of the last token."""

    def __init__(self, job: Job, framing: Framing = SSE) -> None:
        self._job: Final = job
        self._echo: Final = job.echo[0] if job.echo else ""
        self._template: Final = ChunkTemplate(job, "chat.completion.chunk", framing)
        opens = [self._template.open + b'{"index":%d,"delta":{"content":' % i for i in range(job.submission.n)]
        self._plain_open: Final = opens
        self._plain_close: Final = PLAIN_END + self._template.plain_close
        self._unopened: Final = set(range(job.submission.n))
        self._bare: Final = not (job.return_token_ids or job.continuous_usage)  # text is all that a chunk can carry

    def head(self) -> bytes:
        return b""

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        opening = self._opening(piece, usage) if piece.index in self._unopened else b""
        text = piece.text
        if self._bare and piece.finish is None and piece.logprobs is None:
            return opening + self._plain_open[piece.index] + to_json(text) + self._plain_close if text else opening
        tokens = piece.tokens if self._job.return_token_ids else None
        if not text and piece.finish is None and piece.logprobs is None and tokens is None:
            return opening
        members = b',"logprobs":%b,"finish_reason":%b' % (
            to_json(chat_logprobs(piece, self._job.vocabulary)),
            b"null" if piece.finish is None else FINISH_JSON[piece.finish],
        )
        if piece.finish is not None:
            members += b',"stop_reason":' + to_json(piece.stop_reason)
        if tokens is not None:
            members += b',"token_ids":' + to_json(tokens)
        delta = b'{"content":%b}' % to_json(text) if text else b"{}"
        return opening + self._choice(piece.index, delta, members) + self._template.close(usage)

    def tail(self, usage: Usage) -> bytes:
        return self._template.tail(usage if self._job.include_usage else None)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        job = self._job
        choices = [
            ChatChoice(
                piece.index,
                AssistantMessage("assistant", self._echo + piece.text),
                chat_logprobs(piece, job.vocabulary),
                finish_name(piece),
                piece.stop_reason,
                piece.tokens if job.return_token_ids else UNSET,
            )
            for piece in pieces
        ]
        return to_json(
            ChatCompletion(
                job.submission.rid,
                "chat.completion",
                job.created,
                job.model,
                job.fingerprint,
                choices,
                usage,
                job.submission.prompts[0] if job.return_token_ids else UNSET,
            )
        )

    def _opening(self, piece: Piece, usage: Usage | None) -> bytes:
        """The role chunk, from before the piece's tokens; the first of a stream also has the prompt's token ids."""
        index = piece.index
        usage = usage and usage.before(len(piece.tokens))
        first = len(self._unopened) == self._job.submission.n
        self._unopened.discard(index)
        members = b',"logprobs":null,"finish_reason":null'
        extra = b""
        if first and self._job.return_token_ids:
            extra = b',"prompt_token_ids":' + to_json(self._job.submission.prompts[0])
        opening = self._choice(index, ROLE, members) + self._template.close(usage, extra)
        if self._echo:
            echo = b'{"content":%b}' % to_json(self._echo)
            opening += self._choice(index, echo, members) + self._template.close(usage)
        return opening

    def _choice(self, index: int, delta: bytes, members: bytes) -> bytes:
        return self._template.open + b'{"index":%d,"delta":%b%b}' % (index, delta, members)
