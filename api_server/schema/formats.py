"""What an answer has to look like: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from api_server.schema.tools import Name
from protocol.sampling import MAX_GRAMMAR_SIZE

GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_SIZE)]
Schema = dict[str, Any]
Choices = Annotated[list[str], Meta(min_length=1)]


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Anything."""


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class JsonSchema(Struct, frozen=True):
    """With `strict`, a schema that can't be enforced to the letter is refused; without it, what can't be enforced is
    left out. Without `schema` it is any object."""

    name: Name
    schema: Schema | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that matches a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(Struct, frozen=True):
    """What the whole output must match: one of `json` (a schema, as an object or as its text), `json_object`, `regex`,
    `choice` and `grammar` (Lark). The other fields are vLLM's, too, and refused where they would change something."""

    json: Schema | GrammarText | None = None
    json_object: bool | None = None
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    structural_tag: str | None = None
    whitespace_pattern: str | None = None
    disable_additional_properties: bool | None = None
