"""Requests that are generated from the document (by schemathesis, of the extra `fuzz`) find no status, no type and no
header that it does not tell of, on a running server. The same requests each time.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from api_server.routes import API, HEALTH
from tests.e2e.server import Server

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.config import SchemathesisConfig  # noqa: E402
from schemathesis.engine import events, from_schema  # noqa: E402

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
