"""Anthropic's POST /v1/messages and /v1/messages/count_tokens: their bodies, the `message` object with its blocks, and
the events of a streamed one.

Blocks and tools of kinds that are not served decode, so that the refusal can name their type.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from api_server.errors import AnthropicErrorEnvelope
from api_server.schema import fields
from api_server.schema.extensions import Extensions
from api_server.schema.formats import Schema
from api_server.schema.tools import MAX_TOOLS, Name

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Block(Struct, frozen=True, gc=False):
    """A content block of a message, or of a tool's result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None
    is_error: bool | None = None


class InputMessage(Struct, frozen=True, gc=False):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ClientTool(Struct, frozen=True):
    """A tool of the client's own; `type` names those that Anthropic runs itself."""

    name: Name
    type: str | None = None
    description: str | None = None
    input_schema: Schema | None = None
    strict: bool | None = None


ClientTools = Annotated[list[ClientTool], Meta(max_length=MAX_TOOLS)]


class ToolUseChoice(Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True):
    type: str


class JsonFormat(Struct, frozen=True):
    type: Literal["json_schema"]
    schema: Schema


class OutputConfig(Struct, frozen=True):
    format: JsonFormat | None = None
    effort: str | None = None


class Metadata(Struct, frozen=True):
    user_id: str | None = None


class CountRequest(Extensions, kw_only=True, frozen=True):
    """POST /v1/messages/count_tokens: what makes the prompt of a message."""

    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: ClientTools | None = None
    tool_choice: ToolUseChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, kw_only=True, frozen=True):
    """POST /v1/messages."""

    max_tokens: fields.MaxTokens
    stop_sequences: fields.StopStrings | None = None
    temperature: fields.Temperature | None = None
    top_p: fields.TopP | None = None
    stream: bool | None = None
    metadata: Metadata | None = None


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ThinkingBlock(Struct, frozen=True, tag_field="type", tag="thinking"):
    """The signature is empty: who sends the block back need not prove where it is from."""

    thinking: str
    signature: str = ""


class ToolUseBlock(Struct, frozen=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


OutputBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(Struct, frozen=True):
    """`input_tokens` are those that were not read from the prefix cache."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0


class MessageObject(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    model: str
    content: list[OutputBlock]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"


class TokenCount(Struct, frozen=True):
    input_tokens: int


class MessageStart(Struct, frozen=True, tag_field="type", tag="message_start"):
    message: MessageObject


class BlockStart(Struct, frozen=True, tag_field="type", tag="content_block_start"):
    index: int
    content_block: OutputBlock


class TextDelta(Struct, frozen=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(Struct, frozen=True, tag_field="type", tag="signature_delta"):
    signature: str


class InputDelta(Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    index: int


class Stop(Struct, frozen=True):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(Struct, frozen=True, tag_field="type", tag="message_delta"):
    delta: Stop
    usage: MessageUsage


class MessageStop(Struct, frozen=True, tag_field="type", tag="message_stop"):
    pass


class Ping(Struct, frozen=True, tag_field="type", tag="ping"):
    pass


MessageEvent = (
    MessageStart | BlockStart | Ping | BlockDelta | BlockStop | MessageDelta | MessageStop | AnthropicErrorEnvelope
)
