"""Chat messages as OpenAI's API has them. A part that is no text decodes, so that the refusal can name its type.

Nothing decoded from JSON can be part of a cycle, and thousands of messages would only wake the garbage collector.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ContentPart(Struct, frozen=True, gc=False):
    """One part of a message. Only `text` (and an assistant's own `refusal`) can be read by a language model."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Struct, frozen=True, gc=False):
    name: str
    arguments: str  # JSON text


class ToolCall(Struct, frozen=True, gc=False):
    """A call that an earlier answer made; part of the conversation that the template shows to the model."""

    function: FunctionCall
    id: str = ""
    type: str = "function"


class Message(Struct, frozen=True, gc=False):
    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None  # what `tool_calls` was called before there could be several
    tool_call_id: str | None = None
    reasoning_content: str | None = None


Messages = Annotated[list[Message], Meta(min_length=1)]
Scalars = dict[str, str | int | float | bool | None]
Anything = Any  # a field that is looked at only to refuse it
