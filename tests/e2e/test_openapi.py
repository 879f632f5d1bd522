"""The document against a running server: real streams are of the types that it shows, and whoever generates requests
from it finds no status, no type and no header that it does not tell of.

The last part needs the extra `fuzz`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from api_server.operation import Operation
from api_server.routes import API, HEALTH
from tests.e2e.server import Server

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
HELLO = [{"role": "user", "content": "Tell me of a fox."}]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
FUNCTION = {"name": "look", "parameters": PARAMETERS}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
EVERYTHING = {"max_tokens": 6, "n": 2, "return_token_ids": True, "prompt_logprobs": 2, "ignore_eos": True}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HELLO, "max_tokens": 4}),
    (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 3, **EVERYTHING}),
    (CHAT, {"messages": HELLO, "stop": ["e"], "max_tokens": 40}),
    (CHAT, {"messages": [*HELLO, {"role": "assistant", "content": "Once"}], "echo": True, "max_tokens": 4}),
    (CHAT, {"messages": HELLO, "max_tokens": 40, "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "required"}),
    (CHAT, {"messages": HELLO, "max_tokens": 40, "functions": [FUNCTION], "function_call": {"name": "look"}}),
    (COMPLETIONS, {"prompt": "Once", "max_tokens": 4}),
    (COMPLETIONS, {"prompt": ["Once", "A fox"], "logprobs": 2, "echo": True, **EVERYTHING}),
    (COMPLETIONS, {"prompt": [5], "logprobs": 2, "echo": True, **EVERYTHING}),
    (COMPLETIONS, {"prompt": [5, 6], "stop_token_ids": list(range(64)), **EVERYTHING}),
    ("/generate", {"prompt": "Once", "max_tokens": 4}),
    ("/v1/completions/stream", {"prompt": "Once", "max_tokens": 4}),
    (RESPONSES, {"input": "A fox", "max_output_tokens": 4, "top_logprobs": 2}),
    (RESPONSES, {"input": HELLO, "max_output_tokens": 40, "tools": [{"type": "function", **FUNCTION}],
                 "tool_choice": "required"}),
    (MESSAGES, {"messages": HELLO, "max_tokens": 4}),
    (MESSAGES, {"messages": HELLO, "max_tokens": 40, "tools": [{"name": "look", "input_schema": PARAMETERS}],
                "tool_choice": {"type": "any"}}),
]  # fmt: skip


def operation(path: str) -> Operation:
    """Of the path's POST."""
    [found] = [each.operation for each in API if each.path == path and "POST" in each.methods]
    assert found is not None
    return found


def holds(kind: Any, data: bytes) -> None:
    """Nothing of the data is lost in its type."""
    assert json.loads(msgspec.json.encode(msgspec.json.decode(data, type=kind))) == json.loads(data)


@pytest.mark.parametrize(("path", "body"), REQUESTS)
def test_answers_are_of_the_types_in_the_document(server: Server, path: str, body: dict[str, Any]) -> None:
    told = operation(path)
    whole = server.post(path, {**body, "stream": False})
    assert whole.status == 200, whole.text()
    holds(told.gives, whole.text().encode())
    streamed = {**body, "stream": True} | ({"stream_options": USAGE} if path in (CHAT, COMPLETIONS) else {})
    events = [event for event in server.post(path, streamed).data() if event != "[DONE]"]
    lines = list(server.post(path, streamed, {"Accept": "application/x-ndjson"}).lines())
    assert events
    assert lines
    for chunk in (*events, *lines):
        holds(told.streams, chunk.encode())


@pytest.mark.parametrize("path", [each.path for each in HEALTH] + ["/v1/models", "/openapi.json", "/docs"])
def test_head_says_what_get_says(server: Server, path: str) -> None:
    got, asked = server.get(path), server.request("HEAD", path)
    assert got.status == asked.status == 200
    same = ("Content-Type", "Content-Length", "ETag", "Cache-Control")
    moving = ("Content-Length",) if path not in ("/v1/models", "/openapi.json", "/docs", "/livez") else ()
    for name in same:
        if name not in moving:
            assert got.headers[name] == asked.headers[name]
    assert asked.text() == ""


# ---------------------------------------------------------------------------------------------------- schemathesis

FEW_TOKENS = 2
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# What a schema can't say: that a token id is in the vocabulary, that it fits the context, that two fields go together.
NOT_IN_A_SCHEMA = "positive_data_acceptance"
REFUSALS = ["400", "401", "404", "405", "413", "415", "426", "431"]
KEY = "sk-of-the-document"
# Every value of every field is tried once in these; the generating routes share their fields, and one is enough.
COVERED = ["completions", "tokenize", "detokenize", "retrieve_model", "cancel_request", "readyz", "upgrade_required"]


@pytest.fixture
def closed() -> Iterator[Server]:
    with Server("--api-key", KEY, "--max-model-len", "256") as running:
        yield running


def briefly(context: Any, case: Any, kwargs: Any) -> None:
    """Valid requests ask for a few tokens only, and the EventSource route is not always told that it is over."""
    for given in (case.body, case.query):
        if isinstance(given, dict):
            given.setdefault("max_tokens", FEW_TOKENS)
            given |= {name: FEW_TOKENS for name in LIMITS if type(given.get(name)) is int and 2 < given[name] < 200}
    if case.headers and len(str(case.query)) % 4:
        case.headers.pop("Last-Event-ID", None)


def events_of(context: Any, response: Any) -> list[Any]:
    """The objects in a stream, each of which the schema is of."""
    lines = response.content.decode().split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def explore(server: Server, phase: str, examples: int, ids: list[str] | None = None) -> tuple[Counter[str], list[str]]:
    """Calls per operation, and everything that was not as the document says."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import events, from_schema

    config = {
        "base-url": server.url,
        "headers": {"Authorization": f"Bearer {KEY}"},
        "continue-on-failure": True,
        "request-timeout": 60,
        "generation": {"deterministic": True, "max-examples": examples, "no-shrink": True},
        "checks": {
            NOT_IN_A_SCHEMA: {"enabled": False},
            "negative_data_rejection": {"expected-statuses": REFUSALS},
        },
        "phases": {"enabled": False, phase: {"enabled": True}},
    }
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=SchemathesisConfig.from_dict(config))
    schemathesis.hook("before_call")(briefly)
    schemathesis.deserializer("text/event-stream")(events_of)
    calls, failures = Counter[str](), []
    try:
        for event in from_schema(schema if ids is None else schema.include(operation_id=ids)).execute():
            if isinstance(event, events.ScenarioFinished):
                calls[event.label] += len(event.recorder.interactions)
                for checks in event.recorder.checks.values():
                    found = [check.failure_info for check in checks if check.failure_info is not None]
                    failures += [f"{event.label}: {each.failure}\n{each.code_sample}" for each in found]
            elif isinstance(event, events.NonFatalError | events.FatalError):
                failures.append(str(event))
    finally:
        schemathesis.hooks.unregister(briefly)
    return calls, failures


def test_what_is_generated_from_the_document_finds_nothing_else(closed: Server) -> None:
    """No 5xx, no status, media type, header or body that is not in the document, bad data is refused, keys are asked
    for, a wrong method is a 405 with the right Allow; and the engine never noticed."""
    epoch = closed.engine()["epoch"]
    calls, failures = explore(closed, "fuzzing", examples=6)
    assert failures == []
    assert len(calls) == sum(len(each.methods) - ("HEAD" in each.methods) for each in (*HEALTH, *API))
    calls, failures = explore(closed, "coverage", examples=1, ids=COVERED)
    assert failures == []
    assert len(calls) == len(COVERED)
    assert all(calls.values())
    assert closed.engine()["epoch"] == epoch
