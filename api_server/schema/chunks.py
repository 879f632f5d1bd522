"""What a stream is made of: the object in each event or line. They are rendered as bytes put between bytes, for speed;
these types are for whoever reads them, and a test holds every rendered chunk to them.

A field that is UNSET does not appear at all.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from api_server.schema.responses import (
    ChatFinishName,
    ChatLogprobs,
    CompletionLogprobs,
    FinishName,
    PromptTokenLogprobs,
    Usage,
)


class FunctionDelta(Struct, frozen=True):
    """`name` comes whole and first, with empty `arguments`; these follow in pieces of JSON text."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True):
    """A piece of the call number `index`; `id` and `type` come with its first piece only."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True):
    """What is new of a message. The role comes with a choice's first chunk only. `function_call` is for requests with
    `functions`."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    """`finish_reason` comes with a choice's last chunk, and `stop_reason` with it: the stop string, or the token id
    from `stop_token_ids`, that ended it."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishName | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, frozen=True):
    """A piece of a streamed chat completion. With `stream_options.include_usage`, `usage` is null on all but the last
    one, which has no choices; with `continuous_usage_stats` all have it. `prompt_logprobs` come before the first token:
    those of a long prompt in several chunks, whose lists are to be joined."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptTokenLogprobs | UnsetType = UNSET


class CompletionChunkChoice(Struct, frozen=True):
    """`finish_reason` comes with a choice's last chunk, and `stop_reason` with it. `prompt_logprobs` come before the
    choice's first token: those of a long prompt in several chunks, whose lists are to be joined."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishName | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptTokenLogprobs | UnsetType = UNSET


class CompletionChunk(Struct, frozen=True):
    """A piece of a streamed completion; `usage` as in a chat chunk."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class GeneratedToken(Struct, frozen=True):
    """One token of POST /generate: the first with the time of its prefill, later ones with that since the one before,
    in milliseconds. Text that is freed behind the last token comes without an id and a time."""

    token: str
    token_id: int | UnsetType = UNSET
    prefill_time_ms: float | UnsetType = UNSET
    step_ms: float | UnsetType = UNSET


class StreamedText(Struct, frozen=True):
    """A piece of text of /v1/completions/stream."""

    token: str
