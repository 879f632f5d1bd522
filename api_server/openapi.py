"""The OpenAPI 3.1 document of a table of endpoints: schemas from the types that decode and encode, statuses from the
table of errors, texts from docstrings. Knows no request.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from http import HTTPStatus
from typing import Any, Final

import msgspec

from api_server.assets import Asset, pack
from api_server.auth import HEALTH_PATHS, METRICS_PATH, PUBLIC_PATHS, QUERY_TOKEN_ROUTES
from api_server.errors import RETRY_AFTER_S, TABLE
from api_server.operation import JSON_TYPE, OF_A_BODY, ON_EVERY_ROUTE, Operation, Parameter, Tag
from api_server.routes import Endpoint
from api_server.schema.texts import TEXTS
from protocol.version import own_version

VERSION: Final = "3.1.0"
PREFIX: Final = "#/components/schemas/"
SCALARS: Final = frozenset({"string", "integer", "number", "boolean"})
IMPLIED: Final = frozenset({"HEAD"})  # says what its GET says

INTRODUCTION: Final = """\
Unknown fields of a request are ignored, and null is the same as left out. A stream that has begun tells a failure as
its last event, and then there is no `[DONE]`.

A path that does not exist is a 404 (`not_found`), another method of a path a 405 (`method_not_allowed`) whose `Allow`
names those that it has. Every GET but those that stream answers HEAD, too. OPTIONS is for browsers' preflights where
`--cors-origins` lets other origins in, and a 405 everywhere else.
"""
# In the order in which they are shown.
TAGS: Final[dict[Tag, str]] = {
    "Generation": "What the model writes.",
    "Tokens": "What the model reads.",
    "Models": "Which model it is.",
    "Health": "For load balancers and operators. Open to everybody; the metrics may have a key of their own.",
}

KEYS: Final[dict[str, dict[str, str]]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "access_token": {
        "type": "apiKey",
        "in": "query",
        "name": "access_token",
        "description": "For browsers' EventSource and WebSocket, which can't set headers.",
    },
}
HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {
        "description": "The request's own, if that is up to 256 visible ASCII characters, else one made here.",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Stream-Id": {
        "description": "On an answer that streams: the id that its chunks have.",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}},
}
# Statuses that are not HTTP's own.
PHRASES: Final = {499: "Client Closed Request"}

Json = dict[str, Any]


def document(endpoints: Iterable[Endpoint], *, keys: bool = False, metrics_key: bool = False) -> Json:
    """The document of those endpoints that have an operation. `keys` and `metrics_key` tell whether the server was
    started with API keys, and with one for its metrics."""
    told = [(endpoint, endpoint.operation) for endpoint in endpoints if endpoint.operation is not None]
    schemas = _Schemas(operation for _, operation in told)
    paths: dict[str, Json] = {}
    for endpoint, operation in told:
        closed = metrics_key if endpoint.path == METRICS_PATH else keys and endpoint.path not in PUBLIC_PATHS
        for method in endpoint.methods:
            if method not in IMPLIED:
                found = _operation(endpoint, operation, schemas, method, closed)
                paths.setdefault(endpoint.path.replace(":path}", "}"), {})[method.lower()] = found
    components: Json = {"schemas": schemas.components, "headers": HEADERS}
    if keys or metrics_key:
        components["securitySchemes"] = KEYS
    return {
        "openapi": VERSION,
        "info": {
            "title": "tokenwire",
            "version": own_version(),
            "description": INTRODUCTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": ".", "description": "where this document is from"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": components,
    }


class Document:
    """The document of one server, made when it is first asked for. That takes a while, and had better not be on the
    event loop."""

    def __init__(self, endpoints: Iterable[Endpoint], *, keys: bool, metrics_key: bool) -> None:
        self._make: Final = partial(document, tuple(endpoints), keys=keys, metrics_key=metrics_key)

    @cached_property
    def asset(self) -> Asset:
        return pack(msgspec.json.encode(self._make()), JSON_TYPE)


class _Schemas:
    """The schemas of all types that the operations name; those of structs are components."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        types: dict[Any, None] = {}
        taken: dict[Any, None] = {}
        for operation in operations:
            taken |= dict.fromkeys(kind for kind in (operation.takes, operation.query) if kind is not None)
            named = [operation.takes, operation.query, operation.gives, operation.error_body]
            named += operation.streamed
            named += [answer.kind for answer in operation.answers]
            named += [parameter.kind for parameter in operation.parameters]
            types |= dict.fromkeys(kind for kind in named if kind is not None)
        schemas, components = msgspec.json.schema_components(types, ref_template=PREFIX + "{name}")
        self._of: Final[dict[Any, Json]] = dict(zip(types, map(_tidy, schemas), strict=True))
        self.components: Final[Json] = {
            _named(name): _tidy(components[name]) for name in sorted(components, key=_named)
        }

        for kind in taken:
            _describe(self.component(kind))

    def of(self, kind: Any) -> Json:
        return self._of[kind]

    def component(self, kind: Any) -> Json:
        """What a struct's schema refers to."""
        found: Json = self.components[self.of(kind)["$ref"].removeprefix(PREFIX)]
        return found

    def scalars(self, kind: type[msgspec.Struct]) -> list[tuple[str, bool, Json]]:
        """The fields that a query can hold: name, whether it is required, and schema."""
        schema = self.component(kind)
        fields = [(name, _scalar(field)) for name, field in schema["properties"].items()]
        return [(name, name in schema.get("required", ()), field) for name, field in fields if field]


def _operation(endpoint: Endpoint, operation: Operation, schemas: _Schemas, method: str, closed: bool) -> Json:
    summary, description = _texts(endpoint)
    found: Json = {"operationId": endpoint.name, "tags": [operation.tag], "summary": summary}
    if description:
        found["description"] = description
    if parameters := [*_parameters(operation, schemas)]:
        found["parameters"] = parameters
    if operation.takes is not None:
        content = {"schema": schemas.of(operation.takes)}
        if operation.example is not None:
            content["example"] = dict(operation.example)
        found["requestBody"] = {"required": True, "content": {JSON_TYPE: content}}
    found["responses"] = _responses(operation, schemas, _codes(endpoint, operation, closed))
    if closed:
        query = ("http", method, endpoint.path) in QUERY_TOKEN_ROUTES
        found["security"] = [{name: []} for name in KEYS if query or name != "access_token"]
    return found


def _texts(endpoint: Endpoint) -> tuple[str, str]:
    """The first sentence of the handler's docstring, and what follows it."""
    text = " ".join((inspect.getdoc(endpoint.handler) or "").split())
    summary, _, description = text.partition(". ")
    return summary.removesuffix("."), description


def _parameters(operation: Operation, schemas: _Schemas) -> Iterable[Json]:
    for parameter in operation.parameters:
        yield _parameter(parameter, schemas.of(parameter.kind))
    if operation.query is not None:
        example = operation.example or {}
        for name, required, schema in schemas.scalars(operation.query):
            text = schema.pop("description", "")
            found: Json = {"name": name, "in": "query", "required": required, "schema": schema}
            if text:
                found["description"] = text
            if name in example:
                found["example"] = example[name]
            yield found


def _parameter(parameter: Parameter, schema: Json) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.text,
        "schema": schema,
    }


def _codes(endpoint: Endpoint, operation: Operation, closed: bool) -> frozenset[str]:
    """All codes of errors that the endpoint can answer with."""
    codes = ON_EVERY_ROUTE | operation.errors
    if operation.takes is not None:
        codes |= OF_A_BODY
    if endpoint.path not in HEALTH_PATHS:
        codes |= {"draining"}
    return codes | {"invalid_api_key"} if closed else codes


def _responses(operation: Operation, schemas: _Schemas, codes: frozenset[str]) -> Json:
    found: dict[int, Json] = {}
    if content := _content(operation, schemas):
        streamed = ("X-Stream-Id",) if operation.streams is not None else ()
        found[200] = {"description": _success(operation), "headers": _headers(*streamed), "content": content}
    for status, text, kind in operation.answers:
        found[status] = {"description": text, "headers": _headers()}
        if kind is not None:
            found[status]["content"] = {JSON_TYPE: {"schema": schemas.of(kind)}}
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes):
        by_status.setdefault(TABLE[code][0], []).append(code)
    for status, of_status in by_status.items():
        if status not in found:
            found[status] = _error(status, of_status, schemas.of(operation.error_body))
    return {str(status): found[status] for status in sorted(found)}


def _content(operation: Operation, schemas: _Schemas) -> Json:
    """Of the usual answer, by media type."""
    content: Json = {}
    if operation.gives is not None:
        content[operation.gives_as] = {"schema": schemas.of(operation.gives)}
    if operation.streams is not None:
        kinds = [schemas.of(kind) for kind in operation.streamed]
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        content |= {media_type: {"schema": schema} for media_type in operation.streams_as}
    return content


def _success(operation: Operation) -> str:
    if operation.streams is None:
        return "The answer."
    streamed = "a stream, whose schema is that of one event's data or of one line"
    return f"The answer, or {streamed}." if operation.gives is not None else streamed.capitalize() + "."


def _error(status: int, codes: Sequence[str], schema: Json) -> Json:
    phrase = PHRASES.get(status) or HTTPStatus(status).phrase
    again = ("Retry-After",) if RETRY_AFTER_S.keys() & set(codes) else ()
    return {
        "description": f"{phrase}: " + ", ".join(f"`{code}`" for code in codes),
        "headers": _headers(*again),
        "content": {JSON_TYPE: {"schema": schema}},
    }


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _describe(schema: Json) -> None:
    """Puts its text to each field of a request's schema."""
    for name, field in schema["properties"].items():
        if text := TEXTS.get(f"{schema['title']}.{name}", TEXTS.get(name)):
            field["description"] = text


def _tidy(schema: Any) -> Any:
    """Without what says nothing, a default of null, which is only the absence of a field; and with references by the
    names that components have here."""
    if isinstance(schema, Mapping):
        return {key: _tidy(value) for key, value in schema.items() if not (key == "default" and value is None)}
    if isinstance(schema, list | tuple):
        return [_tidy(value) for value in schema]
    if isinstance(schema, str) and schema.startswith(PREFIX):
        return PREFIX + _named(schema.removeprefix(PREFIX))
    return schema


def _named(name: str) -> str:
    """Types that share a name come with their modules, of which the last part is enough: `schema.anthropic.Tool` is an
    AnthropicTool."""
    *_, module, kind = ("", *name.split("."))
    return "".join(word.capitalize() for word in module.split("_")) + kind


def _scalar(schema: Json) -> Json | None:
    """The schema without its arrays, objects and null; None if nothing is left."""
    branches = schema.get("anyOf", [schema])
    kept = [branch for branch in branches if branch.get("type") in SCALARS or "enum" in branch]
    texts = {key: schema[key] for key in ("description",) if key in schema}
    if not kept:
        return None
    return texts | (kept[0] if len(kept) == 1 else {"anyOf": kept})
