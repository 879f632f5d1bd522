"""POST /v1/responses: its body, and the `response` object with its items.

Items and parts of kinds that are not served decode, so that the refusal can name their type. What is only repeated in
the answer is taken as it is.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from api_server.schema import fields
from api_server.schema.extensions import Extensions
from api_server.schema.formats import JsonObjectFormat, Schema, TextFormat
from api_server.schema.messages import Anything
from api_server.schema.responses import TokenLogprob
from api_server.schema.tools import MAX_TOOLS, Name
from protocol.sampling import TopLogprobs

Status = Literal["in_progress", "completed", "incomplete", "failed"]
# All but the first are about tools that are not served, or about reasoning that is not hidden: they add nothing.
Includable = Literal[
    "message.output_text.logprobs",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]


class InputPart(Struct, frozen=True, gc=False):
    """A content part of an input item."""

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(Struct, frozen=True, gc=False):
    """A message, which may leave its type out, a call that an earlier answer made, its output, or earlier reasoning."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None  # JSON text
    output: str | list[InputPart] | None = None


class FunctionTool(Struct, frozen=True, omit_defaults=True):
    """A tool in the flat form of this API."""

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


FunctionTools = Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)]


class ChosenFunction(Struct, frozen=True, tag_field="type", tag="function"):
    """It must be called, or it may be."""

    name: str


class AllowedFunctions(Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    """Only some of the functions may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Meta(max_length=MAX_TOOLS)]


ToolChoice = Literal["none", "auto", "required"] | ChosenFunction | AllowedFunctions


class JsonSchemaFormat(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="json_schema"):
    """JSON that matches a schema, in the flat form of this API."""

    name: Name
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct, frozen=True, omit_defaults=True):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: str | None = None


class Reasoning(Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Extensions, kw_only=True, frozen=True):
    """POST /v1/responses."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: fields.MaxTokens | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    top_logprobs: TopLogprobs | None = None
    stop: fields.StopStrings | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: FunctionTools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    include: list[Includable] | None = None
    stream: bool | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None  # input that fits is never cut, and other input is refused
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Anything = None
    prompt: Anything = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    logprobs: list[TokenLogprob]
    annotations: tuple[()] = ()


class ReasoningText(Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class MessageItem(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(Struct, frozen=True, tag_field="type", tag="reasoning"):
    """What the model thought, word for word; nobody summarises it."""

    id: str
    status: Status
    content: list[ReasoningText]
    summary: tuple[()] = ()


class FunctionCallItem(Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | FunctionCallItem


class InputTokensDetails(Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Struct, frozen=True):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponseObject(Struct, kw_only=True, frozen=True):
    """The answer, whole or so far. Nothing of it is stored, whatever the request said."""

    id: str
    created_at: int
    model: str
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    temperature: float
    text: TextConfig
    tool_choice: ToolChoice
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    user: str | None
    status: Status = "in_progress"
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    completed_at: int | None = None
    object: Literal["response"] = "response"
    background: bool = False
    conversation: None = None
    previous_response_id: None = None
    prompt: None = None
    service_tier: Literal["default"] = "default"
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
