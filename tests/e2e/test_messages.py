"""/v1/messages over plain HTTP, as Anthropic documents it. What its own client makes of it is for tests/clients."""

import json
from typing import Any

import pytest

from tests.e2e.server import Server

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HEADERS = {"x-api-key": "unused", "anthropic-version": "2023-06-01"}
QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
SETTLED: dict[str, Any] = {"max_tokens": 200, "temperature": 0}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def ask(server: Server, **body: Any) -> Any:
    answer = server.post(PATH, {"messages": QUESTION, **SETTLED, **body}, HEADERS)
    assert answer.status == 200, answer.text()
    return answer.json()


def stream(server: Server, **body: Any) -> list[Any]:
    """The events; each must be named after its type."""
    answer = server.post(PATH, {"messages": QUESTION, **SETTLED, **body, "stream": True}, HEADERS)
    assert answer.status == 200
    lines = list(answer.lines())
    found = []
    for name, data, blank in zip(*[iter(lines)] * 3, strict=True):
        found.append(json.loads(data.removeprefix("data: ")))
        assert (name, blank) == ("event: " + found[-1]["type"], "")
    assert found[0]["message"]["id"] == answer.headers["X-Stream-Id"]
    return found


def test_a_message_and_its_stream(server: Server) -> None:
    whole = ask(server)
    assert (whole["type"], whole["role"], whole["model"]) == ("message", "assistant", "tokenwire-tiny")
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("end_turn", None)
    [block] = whole["content"]
    chat = server.post("/v1/chat/completions", {"messages": QUESTION, **SETTLED}).json()
    assert block == {"type": "text", "text": chat["choices"][0]["message"]["content"]}
    start, block_start, ping, *deltas, block_stop, delta, stop = stream(server)
    assert [start["type"], block_start["type"], ping["type"]] == ["message_start", "content_block_start", "ping"]
    assert [block_stop["type"], delta["type"], stop["type"]] == ["content_block_stop", "message_delta", "message_stop"]
    assert {event["type"] for event in deltas} == {"content_block_delta"}
    assert "".join(event["delta"]["text"] for event in deltas) == block["text"]
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    used = delta["usage"]
    assert used["input_tokens"] + used["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
    assert used["output_tokens"] == chat["usage"]["completion_tokens"]
    assert start["message"]["usage"] == {**used, "output_tokens": 0}


def test_the_prefix_cache_is_told_apart(server: Server) -> None:
    long = [{"role": "user", "content": "The same question as before, and before that, too. " * 5}]
    ask(server, messages=long, max_tokens=1)
    usage = ask(server, messages=long, max_tokens=1)["usage"]
    count = server.post(COUNT, {"messages": long}, HEADERS).json()["input_tokens"]
    assert usage["cache_read_input_tokens"] > 0
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"system": "Be brief."},
        {"system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
        {"messages": [*QUESTION, {"role": "assistant", "content": "It is"}]},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
    ],
)
def test_the_count_is_what_the_message_costs(server: Server, more: dict[str, Any]) -> None:
    body = {"messages": QUESTION, **more}
    counted = server.post(COUNT, body, HEADERS).json()
    usage = ask(server, **body)["usage"]
    assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_why_it_stopped(server: Server) -> None:
    cut = ask(server, max_tokens=3)
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 3)
    text = ask(server)["content"][0]["text"]
    word = text.split()[3]
    stopped = ask(server, stop_sequences=[word])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", word)
    assert stopped["content"][0]["text"] == text[: text.index(word)]


def test_the_models_own_words_are_continued(server: Server) -> None:
    text = ask(server)["content"][0]["text"]
    begun = text[: len(text) // 2].rsplit(" ", 1)[0]
    rest = ask(server, messages=[*QUESTION, {"role": "assistant", "content": begun}])["content"][0]["text"]
    assert begun + rest == text


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_and_its_result(server: Server, choice: dict[str, Any]) -> None:
    asked = {"tools": [WEATHER], "tool_choice": {**choice, "disable_parallel_tool_use": True}}
    whole = ask(server, **asked)
    assert whole["stop_reason"] == "tool_use"
    use = whole["content"][-1]
    assert (use["type"], use["name"], set(use["input"])) == ("tool_use", "get_weather", {"city"})
    found = stream(server, **asked)
    parts = [event["delta"].get("partial_json", "") for event in found if event["type"] == "content_block_delta"]
    assert json.loads("".join(parts)) == use["input"]
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert (starts[-1]["type"], starts[-1]["name"], starts[-1]["input"]) == ("tool_use", "get_weather", {})
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "Sunny."}
    turns = [*QUESTION, {"role": "assistant", "content": whole["content"]}, {"role": "user", "content": [result]}]
    answer = ask(server, messages=turns, tools=[WEATHER], tool_choice={"type": "none"})
    assert answer["content"][0]["type"] == "text"


def test_an_answer_by_a_schema(server: Server) -> None:
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
    config = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    answer = json.loads(ask(server, output_config=config)["content"][0]["text"])
    assert set(answer) == {"wet"}


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"model": "other"}, 404, "not_found_error", "other"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 10**6}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"top_k": "many"}, 400, "invalid_request_error", "top_k"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error", "image"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error", "tools"),
    ],
)
def test_errors_are_anthropics(server: Server, body: dict[str, Any], status: int, kind: str, said: str) -> None:
    answer = server.post(PATH, {"messages": QUESTION, **SETTLED, **body}, HEADERS)
    assert answer.status == status
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert said in error["error"]["message"]


def test_a_path_that_is_not_there_and_a_method_that_is_not(server: Server) -> None:
    assert server.get(PATH + "/batches", HEADERS).json()["error"]["type"] == "not_found_error"
    answer = server.get(PATH, HEADERS)
    assert (answer.status, answer.json()["type"], answer.headers["Allow"]) == (405, "error", "POST")


def test_a_cancelled_stream_ends_with_an_error(server: Server) -> None:
    body = {"messages": QUESTION, "max_tokens": 400, "ignore_eos": True, "stream": True}
    answer = server.post(PATH, body, HEADERS)
    events = [json.loads(data) for data in cancelled(server, answer)]
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "invalid_request_error"


def cancelled(server: Server, answer: Any) -> list[str]:
    data = answer.data()
    first = next(data)
    assert server.post(f"/v1/requests/{answer.headers['X-Stream-Id']}/cancel", {}).status == 200
    return [first, *data]
