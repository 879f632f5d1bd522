"""The functions that a model may call, and whether it must, as OpenAI's API has them.

Tools of other types decode, so that the refusal can name their type.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MAX_TOOLS = 128

# A `$` alone would let a line feed follow.
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}(?!\n)$")]


class FunctionDefinition(Struct, frozen=True, gc=False):
    """`parameters` is the JSON schema of an object; without it the function takes none. `strict` asks for arguments
    that match the schema to the letter."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, frozen=True, gc=False):
    function: FunctionDefinition | None = None
    type: str = "function"


class NamedFunction(Struct, frozen=True, gc=False):
    name: str


class NamedTool(Struct, frozen=True, tag_field="type", tag="function"):
    """This function must be called, once."""

    function: NamedFunction


class AllowedTool(Struct, frozen=True):
    type: str
    function: NamedFunction | None = None


class AllowedTools(Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(max_length=MAX_TOOLS)]


class AllowedToolsChoice(Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    """Only some of the tools may be called."""

    allowed_tools: AllowedTools


Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]
Functions = Annotated[list[FunctionDefinition], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice
FunctionChoice = Literal["none", "auto"] | NamedFunction
