"""From what a request says of its answer's form to the grammar that the engine enforces.

Knows no model: how thoughts and calls go together with a grammar is `api_server.speech`'s.
"""

from typing import Any, Final

import msgspec

from api_server.errors import ApiError
from api_server.schema.decode import MAX_DEPTH, check_depth
from api_server.schema.formats import JsonObjectFormat, JsonSchemaFormat, ResponseFormat, Schema, StructuredOutputs
from api_server.schema.requests import GenerationRequest
from protocol.sampling import Grammar, GrammarKind
from protocol.validate import InvalidRequest, check_grammar

ANY_OBJECT: Final[Schema] = {"type": "object"}
RESPONSE_FORMAT: Final = "response_format"
STRUCTURED_OUTPUTS: Final = "structured_outputs"
GUIDED: Final = "guided_"  # the older names of its members, as parameters of their own
KINDS: Final = ("json", "regex", "choice", "grammar")
NOT_SERVED: Final = ("structural_tag", "whitespace_pattern", "disable_additional_properties")
OPTIONS: Final = "x-guidance"  # the member of a schema that tells its compiler how to read it


def grammar_of(request: GenerationRequest) -> Grammar | None:
    """What the answer must match; None if that is anything. It names the request's parameter that it comes from.

    Raises ApiError for more than one form, and for one that is too large.
    """
    found = []
    if request.response_format is not None and (grammar := _formatted(request.response_format)) is not None:
        found.append(grammar)
    if request.structured_outputs is not None:
        found.append(_structured(request.structured_outputs, STRUCTURED_OUTPUTS))
    for kind in KINDS:
        if (value := getattr(request, GUIDED + kind)) is not None:
            found.append(_structured(StructuredOutputs(**{kind: value}), GUIDED + kind))
    if len(found) > 1:
        raise _bad(f"`{found[0].param}` and `{found[1].param}` exclude each other.", found[1].param)
    if not found:
        return None
    try:
        check_grammar(found[0])
    except InvalidRequest as error:
        raise _bad(error.message, found[0].param) from None
    return found[0]


def _formatted(wanted: ResponseFormat) -> Grammar | None:
    match wanted:
        case JsonObjectFormat():
            return _of_schema(ANY_OBJECT, RESPONSE_FORMAT)
        case JsonSchemaFormat(json_schema):
            lenient = {} if json_schema.strict else {OPTIONS: {"lenient": True}}
            schema = ANY_OBJECT if json_schema.schema is None else json_schema.schema
            return _of_schema({**schema, **lenient}, RESPONSE_FORMAT)
        case _:
            return None


def _structured(wanted: StructuredOutputs, param: str) -> Grammar:
    for name in NOT_SERVED:
        if getattr(wanted, name):
            raise ApiError("unsupported_parameter", f"`{param}.{name}` can't be served.", param)
    found = [name for name in KINDS if getattr(wanted, name) is not None]
    if len(found) + bool(wanted.json_object) != 1:
        raise _bad(f"`{param}` has exactly one of {', '.join(KINDS)} and json_object.", param)
    if wanted.json is not None:
        return _of_schema(_schema(wanted.json, param), param)
    if wanted.regex is not None:
        return Grammar(GrammarKind.REGEX, wanted.regex, param)
    if wanted.choice is not None:
        return Grammar(GrammarKind.CHOICE, _to_json(wanted.choice), param)
    if wanted.grammar is not None:
        return Grammar(GrammarKind.LARK, wanted.grammar, param)
    return _of_schema(ANY_OBJECT, param)


def _schema(given: Schema | str, param: str) -> Schema:
    """A schema, or its text as vLLM takes it, too."""
    if not isinstance(given, str):
        return given
    try:
        check_depth(given.encode())
        return msgspec.json.decode(given, type=Schema)
    except (msgspec.MsgspecError, ApiError):
        raise _bad(f"`{param}`: the JSON schema is no JSON object of at most {MAX_DEPTH} levels.", param) from None


def _of_schema(schema: Schema, param: str) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, _to_json(schema), param)


def _to_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bad(message: str, param: str) -> ApiError:
    return ApiError("invalid_request_error", message, param)
