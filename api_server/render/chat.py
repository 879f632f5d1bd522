"""Chat completions: `chat.completion.chunk` objects, and the `chat.completion` object."""

from collections.abc import Iterator
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from api_server.job import Job
from api_server.parsing import Said
from api_server.render.calls import chat_finish_name, told_calls, whole_call
from api_server.render.frame import SSE, ChunkTemplate, Framing, finish_name, to_json
from api_server.render.logprobs import chat_logprobs, long_chat_logprobs
from api_server.render.long import LongLists
from api_server.render.prompt import long_prompt_logprobs, slices
from api_server.render.reading import Reading
from api_server.schema.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatFinishName,
    CompletionTokensDetails,
    Usage,
)
from api_server.text import Piece

ROLE: Final = b'{"role":"assistant","content":""}'
NOTHING: Final = b"{}"
PLAIN_MEMBERS: Final = b',"logprobs":null,"finish_reason":null'
PLAIN_END: Final = b"}" + PLAIN_MEMBERS + b"}"


class ChatRenderer:
    """A choice's first chunk gives its role and comes with its first token, so that the time to the first event is the
    time to the first token. The finish reason rides on the chunk of the last token. Used once.

    A piece is one chunk, so that whoever has it has all that its tokens told: reasoning, content and calls beside each
    other, where the job has a reader. Log probabilities and token ids are told also if the text is held back.
    """

    __slots__ = ("_bare", "_echo", "_job", "_plain_close", "_plain_open", "_readings", "_template", "_unopened")

    def __init__(self, job: Job, framing: Framing = SSE) -> None:
        self._job: Final = job
        self._echo: Final = job.echo[0] if job.echo else ""
        self._template: Final = ChunkTemplate(job, "chat.completion.chunk", framing)
        opens = [self._template.open + b'{"index":%d,"delta":{"content":' % i for i in range(job.submission.n)]
        self._plain_open: Final = opens
        self._plain_close: Final = PLAIN_END + self._template.plain_close
        self._unopened: Final = set(range(job.submission.n))
        self._readings: Final = [] if job.reader is None else [Reading(job.reader()) for _ in opens]
        # Text is all that a chunk can carry.
        self._bare: Final = not (job.return_token_ids or job.continuous_usage or self._readings)

    def head(self) -> bytes:
        return b""

    def openings(self, index: int) -> int:
        return (2 if self._echo else 1) if index in self._unopened else 0

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        opening = self._opening(piece, usage) if piece.index in self._unopened else b""
        if piece.prompt_logprobs:
            return opening or self._continued(piece, usage)
        text = piece.text
        if self._bare and piece.finish is None and piece.logprobs is None:
            if not text:
                return opening
            plain = self._plain_open[piece.index] + to_json(text) + self._plain_close
            return opening + plain if opening else plain
        delta = self._delta(piece)
        tokens = piece.tokens if self._job.return_token_ids else None
        if delta == NOTHING and piece.finish is None and piece.logprobs is None and tokens is None:
            return opening
        members = b',"logprobs":%b,"finish_reason":%b' % (
            to_json(chat_logprobs(piece, self._job.vocabulary)),
            b"null" if piece.finish is None else to_json(self._finish_name(piece)),
        )
        if piece.finish is not None:
            members += b',"stop_reason":' + to_json(piece.stop_reason)
        if tokens is not None:
            members += b',"token_ids":' + to_json(tokens)
        usage = usage and self._detailed(usage)
        return opening + self._choice(piece.index, delta, members) + self._template.close(usage)

    def tail(self, usage: Usage) -> bytes:
        return self._template.tail(self._detailed(usage) if self._job.include_usage else None)

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes | Iterator[bytes]:
        job, lists = self._job, LongLists()
        choices = [
            ChatChoice(
                piece.index,
                self._message(piece),
                long_chat_logprobs(piece, job.vocabulary, lists),
                self._finish_name(piece),
                piece.stop_reason,
                piece.tokens if job.return_token_ids else UNSET,
            )
            for piece in pieces
        ]
        whole = ChatCompletion(
            job.submission.rid,
            "chat.completion",
            job.created,
            job.model,
            job.fingerprint,
            choices,
            self._detailed(usage),
            job.submission.prompts[0] if job.return_token_ids else UNSET,
        )
        if job.prompt_logprobs is not None:
            parts = long_prompt_logprobs(job, slices(job, 0, pieces[0].prompt_logprobs))
            whole = replace(whole, prompt_logprobs=lists.add(parts))
        return lists.body(whole)

    def _opening(self, piece: Piece, usage: Usage | None) -> bytes:
        """The role chunk, from before the piece's tokens; the first of a stream also has the prompt's token ids and the
        beginning of its log probabilities."""
        index = piece.index
        usage = usage and self._detailed(usage.before(len(piece.tokens)))
        first = len(self._unopened) == self._job.submission.n
        self._unopened.discard(index)
        extra = b""
        if first and self._job.return_token_ids:
            extra = b',"prompt_token_ids":' + to_json(self._job.submission.prompts[0])
        if first and self._job.prompt_logprobs is not None:
            extra += self._prompt_logprobs(piece)
        opening = self._choice(index, ROLE, PLAIN_MEMBERS) + self._template.close(usage, extra)
        if self._echo:
            echo = b'{"content":%b}' % to_json(self._echo)
            opening += self._choice(index, echo, PLAIN_MEMBERS) + self._template.close(usage)
        return opening

    def _continued(self, piece: Piece, usage: Usage | None) -> bytes:
        """More of the prompt's log probabilities."""
        extra = self._prompt_logprobs(piece)
        return self._choice(piece.index, NOTHING, PLAIN_MEMBERS) + self._template.close(
            usage and self._detailed(usage), extra
        )

    def _prompt_logprobs(self, piece: Piece) -> bytes:
        parts = long_prompt_logprobs(self._job, slices(self._job, 0, piece.prompt_logprobs))
        return b',"prompt_logprobs":[%b]' % b",".join(parts)

    def _delta(self, piece: Piece) -> bytes:
        """What is new in the piece, which may be nothing."""
        if not self._readings:
            return b'{"content":%b}' % to_json(text) if (text := piece.text) else NOTHING
        said = self._readings[piece.index].hear(piece)
        members = []
        if said.reasoning:
            members.append(b'"reasoning_content":' + to_json(said.reasoning))
        if said.content:
            members.append(b'"content":' + to_json(said.content))
        if said.calls:
            members.append(told_calls(said.calls, piece.index, self._job))
        return b"{%b}" % b",".join(members)

    def _message(self, piece: Piece) -> AssistantMessage:
        """All of a choice."""
        job = self._job
        said = self._readings[piece.index].hear(piece) if self._readings else Said(piece.text)
        content = self._echo + said.content
        calls = [whole_call(call, piece.index, job) for call in said.calls]
        return AssistantMessage(
            "assistant",
            None if (calls or said.reasoning) and not content else content,
            reasoning_content=said.reasoning or UNSET,
            tool_calls=calls if calls and not job.legacy_calls else UNSET,
            function_call=calls[0].function if calls and job.legacy_calls else UNSET,
        )

    def _finish_name(self, piece: Piece) -> ChatFinishName:
        if piece.finish is None or not self._readings:
            return finish_name(piece)
        return chat_finish_name(piece.finish, self._readings[piece.index].calls, self._job)

    def _detailed(self, usage: Usage) -> Usage:
        """With the tokens that went into reasoning, where there can be some."""
        if not self._readings:
            return usage
        tokens = sum(reading.reasoning_tokens for reading in self._readings)
        return replace(usage, completion_tokens_details=CompletionTokensDetails(tokens))

    def _choice(self, index: int, delta: bytes, members: bytes) -> bytes:
        return self._template.open + b'{"index":%d,"delta":%b%b}' % (index, delta, members)
