"""Streams as lines of JSON: the same chunks as events, for who asks for them by `Accept`."""

import json
from typing import Any

import pytest

from tests.e2e.server import Server

LINES = {"Accept": "application/x-ndjson"}
QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
STORY = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
CHANGES = frozenset({"id", "created", "prefill_time_ms", "step_ms"})  # from one answer to the next


def lines(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    answer = server.post(path, body, LINES)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["X-Stream-Id"]
    return [json.loads(line) for line in answer.lines()]


def text(chunks: list[Any]) -> dict[int, str]:
    """Of each choice, or of /generate's and the simple route's only one. Choices come as they happen to."""
    parts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.get("choices", ()):
            said = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            parts[choice["index"]] = parts.get(choice["index"], "") + said
        parts[0] = parts.get(0, "") + chunk.get("token", "")
    return parts


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": QUESTION, "temperature": 0, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {**STORY, "return_token_ids": True}),
        ("/v1/completions", {**STORY, "n": 2, "logprobs": 1}),
        ("/generate", STORY),
        ("/v1/completions/stream", STORY),
    ],
)
def test_lines_are_the_chunks_of_an_event_stream(server: Server, path: str, body: dict[str, Any]) -> None:
    body = {**body, "stream": True}
    chunks, events = lines(server, path, body), server.post(path, body).events()
    assert text(chunks) == text(events)
    assert {frozenset(chunk) for chunk in chunks} == {frozenset(event) for event in events}
    if path == "/generate":  # one chunk per token; elsewhere tokens that come together share one
        assert [settled(chunk) for chunk in chunks] == [settled(event) for event in events]
    assert ends(chunks) == ends(events)


def ends(chunks: list[Any]) -> list[Any]:
    """Finish reasons in order, and usage."""
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    return [*reasons, settled(chunks[-1]).get("usage")]


def settled(chunk: dict[str, Any]) -> dict[str, Any]:
    """What does not change from one answer to the next."""
    kept = {name: value for name, value in chunk.items() if name not in CHANGES}
    if isinstance(kept.get("usage"), dict):  # how much of the prompt was cached does
        kept["usage"] = {name: value for name, value in kept["usage"].items() if name != "prompt_tokens_details"}
    return kept


def test_an_error_is_the_last_line(server: Server) -> None:
    answer = server.post("/v1/completions", {**STORY, "max_tokens": 1900, "stream": True}, LINES)
    stream = answer.lines()
    assert "choices" in json.loads(next(stream))
    assert server.post(f"/v1/requests/{answer.headers['X-Stream-Id']}/cancel", {}).status == 200
    *chunks, last = map(json.loads, stream)
    assert last["error"]["code"] == "request_cancelled"
    assert all("choices" in chunk for chunk in chunks)


def test_what_does_not_stream_is_json_all_the_same(server: Server) -> None:
    whole = server.post("/v1/completions", STORY, LINES)
    assert (whole.status, whole.headers["Content-Type"]) == (200, "application/json")
    refused = server.post("/v1/completions", {**STORY, "stream": True, "temperature": 9}, LINES)
    assert (refused.status, refused.json()["error"]["param"]) == (400, "temperature")


def test_an_event_source_gets_events(server: Server) -> None:
    answer = server.get("/v1/completions/stream?prompt=Hi&max_tokens=2", LINES)
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
