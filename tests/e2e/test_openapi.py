"""The document against a running server: real streams are of the types that it shows, and its examples work."""

import json
from typing import Any
from urllib.parse import urlencode

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


def test_examples_work(server: Server) -> None:
    """Of the document as it is served: the first thing that whoever opens the page sends."""
    sent = 0
    for path, methods in server.get("/openapi.json").json()["paths"].items():
        for method, told in methods.items():
            query = {each["name"]: each["example"] for each in told.get("parameters", ()) if "example" in each}
            content = told.get("requestBody", {}).get("content", {}).get("application/json", {})
            if not (query or content):
                continue
            body = json.dumps(content["example"]).encode() if content else None
            answer = server.request(method.upper(), f"{path}?{urlencode(query)}", body)
            assert answer.status == 200, (path, answer.text())
            media_type, _, _ = answer.headers["Content-Type"].partition(";")
            assert media_type in told["responses"]["200"]["content"]
            if media_type == "text/event-stream":
                assert list(answer.data())[-1] == "[DONE]"
            sent += 1
    assert sent == sum(each.operation is not None and each.operation.example is not None for each in API)
