"""The document against the standard, the routes against the document, and the bytes that are sent against both."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from api_server.errors import TABLE
from api_server.openapi import TAGS, document
from api_server.operation import OF_GENERATION, Operation
from api_server.routes import API, HEALTH, PAGES, Endpoint
from api_server.schema import requests
from api_server.schema.texts import TEXTS
from tests.api_server.test_endpoints import App

ENDPOINTS = (*HEALTH, *API, *PAGES)
OPEN = document(ENDPOINTS)
CLOSED = document(ENDPOINTS, keys=True, metrics_key=True)
EVERYWHERE = {"400", "408", "413", "431", "500"}
# Resuming generates nothing, and streams what the other routes do: tests/api_server/test_resume.py.
STREAMED = [
    endpoint
    for endpoint in API
    if endpoint.operation and endpoint.operation.streams and endpoint.name != "resume_stream"
]


def name(value: object) -> str:
    return value.name if isinstance(value, Endpoint) else ""


def operations(found: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def told(endpoint: Endpoint) -> Operation:
    assert endpoint.operation is not None
    return endpoint.operation


def again(kind: Any, data: bytes) -> Any:
    """What is left of the data in its type: all of it, or the type does not tell all."""
    return json.loads(msgspec.json.encode(msgspec.json.decode(data, type=kind)))


@pytest.mark.parametrize("found", [OPEN, CLOSED], ids=["open", "closed"])
def test_the_document_is_openapi(found: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(found).validate()
    json.dumps(found)


@pytest.mark.parametrize("endpoint", [*HEALTH, *API], ids=name)
def test_no_route_goes_undocumented(endpoint: Endpoint) -> None:
    operation = told(endpoint)
    assert endpoint.handler.__doc__, "the handler's docstring is the operation's text"
    assert operation.gives is not None or operation.streams is not None or operation.answers
    takes_a_body = operation.takes is not None or "{" in endpoint.path
    assert takes_a_body or "POST" not in endpoint.methods
    assert (operation.takes is None and operation.query is None) == (operation.example is None)


def test_the_document_has_every_route_and_every_id_once() -> None:
    served = {
        (endpoint.path.replace(":path", ""), method.lower())
        for endpoint in (*HEALTH, *API)
        for method in endpoint.methods
        if method != "HEAD"
    }
    assert {(path, method) for path, method, _ in operations(OPEN)} == served
    ids = [operation["operationId"] for *_, operation in operations(OPEN)]
    assert len(set(ids)) == len(ids)
    assert {tag for *_, operation in operations(OPEN) for tag in operation["tags"]} == TAGS.keys()


def test_schemas_have_plain_names_and_all_references_lead_to_one() -> None:
    schemas = OPEN["components"]["schemas"]
    assert all(each.isidentifier() for each in schemas)
    text = json.dumps(OPEN)
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= schemas.keys()


def test_types_of_one_name_are_told_apart_by_their_modules() -> None:
    kinds = [msgspec.defstruct("Twin", [(each, int)], module=f"somewhere.{each}_half") for each in ("left", "right")]
    operation = Operation(tag="Tokens", takes=kinds[0], gives=kinds[1])
    found = document([Endpoint("/x", ("POST",), API[0].handler, "x", operation)])
    assert {"LeftHalfTwin", "RightHalfTwin"} <= found["components"]["schemas"].keys()
    schema = found["paths"]["/x"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/LeftHalfTwin"}
    OpenAPIV31SpecValidator(found).validate()


@pytest.mark.parametrize(
    ("path", "method", "statuses"),
    [
        ("/livez", "get", EVERYWHERE | {"200"}),
        ("/readyz", "get", EVERYWHERE | {"200", "503"}),
        ("/v1/ws", "get", EVERYWHERE | {"101", "403", "426", "503"}),
        ("/v1/models", "get", EVERYWHERE | {"200", "503"}),
        ("/v1/models/{id}", "get", EVERYWHERE | {"200", "404", "503"}),
        ("/tokenize", "post", EVERYWHERE | {"200", "404", "415", "499", "503"}),
        ("/v1/chat/completions", "post", EVERYWHERE | {"200", "404", "415", "422", "429", "499", "503"}),
        ("/v1/completions/stream", "get", EVERYWHERE | {"200", "204", "404", "422", "429", "499", "503"}),
    ],
)
def test_an_operation_has_the_statuses_that_it_can_give(path: str, method: str, statuses: set[str]) -> None:
    assert OPEN["paths"][path][method]["responses"].keys() == statuses
    closed = path.startswith(("/v1", "/tokenize"))
    assert CLOSED["paths"][path][method]["responses"].keys() == statuses | ({"401"} if closed else set())


def test_every_error_is_documented_but_those_of_no_route() -> None:
    texts = [answer["description"] for *_, each in operations(CLOSED) for answer in each["responses"].values()]
    nowhere = {"not_found", "method_not_allowed", "stream_not_found"}
    assert {code for code in TABLE if not any(f"`{code}`" in text for text in texts)} <= nowhere
    assert {"not_found", "method_not_allowed"} <= {
        code for code in nowhere if f"`{code}`" in OPEN["info"]["description"]
    }


def test_errors_that_pass_say_when_to_try_again() -> None:
    answers = OPEN["paths"]["/v1/completions"]["post"]["responses"]
    assert [status for status in sorted(answers) if "Retry-After" in answers[status]["headers"]] == ["429", "503"]
    assert all("X-Request-Id" in answer["headers"] for answer in answers.values())


def test_keys_are_asked_for_where_the_server_asks() -> None:
    assert "securitySchemes" not in OPEN["components"]
    assert not any("security" in operation for *_, operation in operations(OPEN))
    by_path = {path: operation.get("security") for path, method, operation in operations(CLOSED) if method == "get"}
    assert [path for path, security in by_path.items() if not security] == [
        "/livez", "/readyz", "/health", "/ping", "/startupz", "/version",
    ]  # fmt: skip
    assert by_path["/v1/models"] == [{"bearer": []}, {"x_api_key": []}]
    assert by_path["/v1/completions/stream"] == [{"bearer": []}, {"x_api_key": []}, {"access_token": []}]
    only_metrics = document(ENDPOINTS, metrics_key=True)
    assert [path for path, _, operation in operations(only_metrics) if "security" in operation] == ["/metrics"]


def test_a_query_has_the_scalar_fields_alone() -> None:
    parameters = OPEN["paths"]["/v1/completions/stream"]["get"]["parameters"]
    found = {parameter["name"]: parameter for parameter in parameters if parameter["in"] == "query"}
    assert {"prompt", "max_tokens", "temperature", "stop", "seed", "ignore_eos"} <= found.keys()
    assert not {"logit_bias", "stream_options", "stop_token_ids", "metadata", "structured_outputs"} & found.keys()
    assert [each for each, parameter in found.items() if parameter["required"]] == ["prompt"]
    assert found["prompt"]["schema"] == {"type": "string"}
    assert found["temperature"]["schema"] == {"type": "number", "minimum": 0.0, "maximum": 2.0}


def test_ranges_and_keys_are_in_the_schemas() -> None:
    fields = OPEN["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"type": "integer", "minimum": 1, "maximum": 8} in fields["n"]["anyOf"]
    [bias] = [branch for branch in fields["logit_bias"]["anyOf"] if branch["type"] == "object"]
    assert bias["propertyNames"] == {"pattern": "^[0-9]+$"}
    assert bias["maxProperties"] == 1024
    assert "default" not in fields["temperature"]


def test_every_field_of_a_request_has_its_text() -> None:
    kinds = {kind for endpoint in API for kind in (told(endpoint).takes, told(endpoint).query) if kind is not None}
    fields = {(kind.__name__, field) for kind in kinds for field in kind.__struct_fields__}
    schemas = OPEN["components"]["schemas"]
    assert [each for each in sorted(fields) if "description" not in schemas[each[0]]["properties"][each[1]]] == []
    assert TEXTS.keys() <= {field for _, field in fields} | {f"{kind}.{field}" for kind, field in fields}


@pytest.mark.parametrize("endpoint", STREAMED, ids=name)
def test_streams_are_what_the_document_says(endpoint: Endpoint) -> None:
    """Also where they break off. With all options and real tokens, this is in tests/e2e."""
    operation = told(endpoint)
    path, body = endpoint.path, {**(operation.example or {}), "stream": True}
    for fails in (None, 3):
        app = App()
        app.engine.fails = fails
        reply = app("GET", path + "?prompt=hi") if operation.takes is None else app("POST", path, body)
        lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n") if line.startswith("data: ")]
        events = [line for line in lines if line != "[DONE]"]
        assert events
        for event in events:
            broken = operation.stream_error is not None and "error" in json.loads(event)
            kind = operation.stream_error if broken else operation.streams
            assert again(kind, event.encode()) == json.loads(event)


@pytest.mark.parametrize(
    ("path", "template"),
    [("/livez",) * 2, ("/version",) * 2, ("/v1/models",) * 2, ("/v1/models/tiny", "/v1/models/{id:path}")],
)
def test_other_answers_are_what_the_document_says(path: str, template: str) -> None:
    [endpoint] = [each for each in (*HEALTH, *API) if each.path == template]
    reply = App()("GET", path)
    assert again(told(endpoint).gives, reply.body) == reply.json()


def test_a_route_of_generation_can_fail_in_all_ways_of_generation() -> None:
    for endpoint in STREAMED:
        assert told(endpoint).errors >= OF_GENERATION


def test_the_same_type_takes_the_query_and_the_body() -> None:
    by_method = {endpoint.methods: told(endpoint) for endpoint in API if endpoint.path == "/v1/completions/stream"}
    assert by_method[("POST",)].takes is by_method[("GET",)].query is requests.PlainRequest
