"""The objects that answer a request which does not stream. A field that is UNSET does not appear at all."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

FinishName = Literal["stop", "length"]
ChatFinishName = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(Struct, frozen=True):
    """Of all choices' tokens, those up to the end of each one's reasoning."""

    reasoning_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of one request: its prompts counted once each, its choices all together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET

    def before(self, tokens: int) -> "Usage":
        """What it was so many output tokens ago."""
        return replace(self, completion_tokens=self.completion_tokens - tokens, total_tokens=self.total_tokens - tokens)


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    """Four lists with an entry per token. With `echo` they begin with the prompt's tokens, of which the first has no
    log probability and no alternatives: there both lists have null."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptTokenLogprob(Struct, frozen=True):
    """`rank` is 1 for the likeliest token; equally likely ones share a rank."""

    logprob: float
    rank: int
    decoded_token: str


# Per token of a prompt, by token id: its own and the likeliest ones. The first token has none.
PromptTokenLogprobs = list[dict[str, PromptTokenLogprob] | None]


class CalledFunction(Struct, frozen=True):
    """`arguments` is JSON text as the model wrote it. Whether it fits the function's schema is certain only for a call
    that was forced."""

    name: str
    arguments: str


class MadeToolCall(Struct, frozen=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Struct, frozen=True):
    """Content is null where there is none beside calls or reasoning. `function_call` is for requests with `functions`,
    as `tools` were called before."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MadeToolCall] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishName
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptTokenLogprobs | UnsetType = UNSET


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishName
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptTokenLogprobs | UnsetType = UNSET


class Completion(Struct, frozen=True):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Generated(Struct, frozen=True):
    """POST /generate."""

    id: str
    text: str
    token_ids: list[int]
    finish_reason: FinishName
    prefill_time_ms: float
    total_time_ms: float
    usage: Usage


class Streamed(Struct, frozen=True):
    """POST /v1/completions/stream with `stream` false."""

    id: str
    text: str
    finish_reason: FinishName
    usage: Usage


class CancelledRequest(Struct, frozen=True):
    """POST /v1/requests/{id}/cancel."""

    id: str
    cancelled: Literal[True] = True


class ModelObject(Struct, frozen=True):
    id: str
    created: int
    max_model_len: int
    root: str
    object: Literal["model"] = "model"
    owned_by: str = "tokenwire"
    parent: None = None


class ModelList(Struct, frozen=True):
    data: list[ModelObject]
    object: Literal["list"] = "list"


class Tokenized(Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct, frozen=True):
    prompt: str
