"""A function's parameters as a JSON schema that can be enforced while a model writes.

Such a schema is a part of a grammar, which has a size and a compiler that does not know all of JSON Schema. So what
says nothing about the arguments is left out, and of a function that is not strict what can't be enforced is left out
as well: its schema is advice, as with OpenAI. The schema of a strict function is enforced to the letter or refused.
Knows no dialect and no grammar.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_SCHEMA_DEPTH: Final = 64  # of schemas in schemas: the compiler takes 128 brackets, and most schemas take two

_ANNOTATIONS: Final = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$schema"})
_SCHEMAS_BY_NAME: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_SCHEMAS: Final = frozenset(
    {"items", "additionalProperties", "prefixItems", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "contains"}
)
# Keywords beside `properties` that may let in arguments it does not name.
_MORE_PROPERTIES: Final = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "allOf", "$ref"}
)
_NO_AUTOMATON: Final = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]|\\k<")  # look-arounds and back-references
_LAYOUT: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


@dataclass(frozen=True, slots=True)
class Function:
    """A tool as the client declares it. `parameters` is a JSON schema, None if the function takes none."""

    name: str
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


def enforceable(function: Function) -> dict[str, Any]:
    """The schema of the function's arguments: always of an object, of one without members if there are no parameters.

    Properties that the schema does not name are let in only if it says so. Raises ValueError for a schema that is not
    of an object, or is nested too deep.
    """
    if not function.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = _prune(function.parameters, function.strict, MAX_SCHEMA_DEPTH)
    kind = schema.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        schema["type"] = "object"
    elif kind is not None:
        raise ValueError(f"the parameters of function {function.name} are of type {kind}, not an object")
    elif "$ref" not in schema:  # which may be circular, and then the compiler bears nothing beside it
        schema["type"] = "object"
    if names_all(schema) and not schema.keys() & _MORE_PROPERTIES:
        schema["additionalProperties"] = False
    return schema


def names_all(schema: dict[str, Any]) -> bool:
    """Whether `properties` and `required` are what they should be, and all that is required has a property."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return False
    return all(isinstance(name, str) and name in properties for name in required)


def to_text(schema: Mapping[str, Any], *, strict: bool) -> str:
    """The schema as JSON for the grammar compiler. JSON of one line, with at most one space after a separator: the
    spaces that JSON allows would let a model fill its context with them. Raises ValueError if it is nested too deep."""
    options = _LAYOUT if strict else {**_LAYOUT, "lenient": True}
    try:
        return json.dumps({**schema, "x-guidance": options})
    except RecursionError:
        raise ValueError("a schema is nested too deep") from None


def _prune(schema: Mapping[str, Any], strict: bool, depth: int) -> dict[str, Any]:
    """The schema without annotations, and without patterns that can't be enforced unless it is strict."""
    if depth == 0:
        raise ValueError(f"a schema is nested deeper than {MAX_SCHEMA_DEPTH}")
    pruned: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS:
            continue
        if key == "pattern" and not strict and isinstance(value, str) and _NO_AUTOMATON.search(value):
            continue
        if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            pruned[key] = {name: _inner(part, strict, depth) for name, part in value.items()}
        elif key in _SCHEMAS:
            pruned[key] = (
                [_inner(part, strict, depth) for part in value]
                if isinstance(value, list)
                else _inner(value, strict, depth)
            )
        else:
            pruned[key] = value
    return pruned


def _inner(schema: Any, strict: bool, depth: int) -> Any:
    """A schema in a schema, which may be a boolean."""
    return _prune(schema, strict, depth - 1) if isinstance(schema, Mapping) else schema
