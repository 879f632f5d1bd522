"""The bodies of the generating routes, and those of /tokenize and /detokenize. Unknown fields are ignored, and null is
the same as left out, because client libraries send both."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from api_server.schema import fields
from api_server.schema.extensions import Sampling
from api_server.schema.formats import Choices, GrammarText, ResponseFormat, Schema, StructuredOutputs
from api_server.schema.messages import Anything, Messages, Scalars
from api_server.schema.tools import FunctionChoice, Functions, ToolChoice, Tools
from protocol.sampling import TokenId, TopLogprobs

Prompt = str | list[TokenId]
Prompts = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    resumable: bool | None = None
    interval_ms: fields.IntervalMs | None = None


class GenerationRequest(Sampling, kw_only=True, frozen=True):
    """What OpenAI's routes and ours share: the sampling parameters, and how the answer is delivered."""

    model: str | None = None
    max_tokens: fields.MaxTokens | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    n: fields.Choices | None = None
    stop: fields.StopStrings | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: TopLogprobs | None = None
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | GrammarText | None = None
    guided_regex: GrammarText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class ChatRequest(GenerationRequest, kw_only=True, frozen=True):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: fields.MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: FunctionChoice | None = None
    chat_template: Anything = None
    chat_template_kwargs: Scalars | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(GenerationRequest, kw_only=True, frozen=True):
    """POST /v1/completions."""

    prompt: Prompts
    max_tokens: fields.EchoTokens | None = None
    logprobs: TopLogprobs | None = None
    suffix: str | None = None


class PlainRequest(GenerationRequest, kw_only=True, frozen=True):
    """POST /generate, and POST and GET /v1/completions/stream: one prompt, one answer."""

    prompt: Prompt
    logprobs: TopLogprobs | bool | None = None


class TokenizeRequest(Struct, kw_only=True, frozen=True):
    """POST /tokenize, vLLM's shape: a prompt, or messages to be put through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    chat_template: Anything = None
    chat_template_kwargs: Scalars | None = None
    tools: Tools | None = None


class DetokenizeRequest(Struct, kw_only=True, frozen=True):
    """POST /detokenize, vLLM's shape."""

    tokens: list[TokenId]
    model: str | None = None
