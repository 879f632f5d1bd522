import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from api_server.errors import ApiError
from api_server.job import Job
from api_server.render.frame import NDJSON
from api_server.render.responses import ResponsesRenderer
from api_server.schema.decode import decode
from api_server.schema.responses_api import ResponsesRequest
from api_server.text import Answer
from protocol.messages import Delta, FinishReason, TokenLogprobs
from tests.api_server.render.answers import (
    CACHED,
    CALL,
    FULL,
    OTHER_CALL,
    PROMPT,
    THOUGHT,
    answer,
    encode,
    events,
    streamed,
    whole,
    work,
)

HEX = "0" * 32
REQUEST = decode(b'{"input":"hi"}', ResponsesRequest)
EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(get_args(ResponseStreamEvent)[0])
}
NOW_S = 1_700_000_005.5


def check(kind: type[BaseModel], value: Any) -> None:
    """Exactly of the types that OpenAI's client has for it."""
    kind.model_validate_json(json.dumps(value), strict=True)


def make(made: Job, request: ResponsesRequest = REQUEST) -> ResponsesRenderer:
    return ResponsesRenderer(made, request, lambda: NOW_S)


def stream(parts: Sequence[Delta], **options: Any) -> list[Any]:
    made = work("resp_" + HEX, **options)
    found = streamed(make(made), made, parts)
    for number, event in enumerate(found):
        check(EVENTS[event["type"]], event)
        assert event.pop("sequence_number") == number
    return found


def complete(parts: Sequence[Delta], **options: Any) -> Any:
    made = work("resp_" + HEX, **options)
    response = whole(make(made), made, parts)
    check(Response, response)
    return response


def test_a_text_exactly() -> None:
    created, in_progress, *middle, completed = stream(answer("Hello world"), reader=None)
    where = {"output_index": 0, "item_id": f"msg_{HEX}00"}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": f"msg_{HEX}00", "role": "assistant", "status": "in_progress", "content": []}
    delta = {"type": "response.output_text.delta", **where, "content_index": 0, "logprobs": []}
    full = {**part, "text": "Hello world"}
    done = {**item, "status": "completed", "content": [full]}
    assert middle == [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **where, "content_index": 0, "part": part},
        {**delta, "delta": "Hello"},
        {**delta, "delta": " world"},
        {**delta, "type": "response.output_text.done", "text": "Hello world"},
        {"type": "response.content_part.done", **where, "content_index": 0, "part": full},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
    ]
    assert [created["type"], in_progress["type"]] == ["response.created", "response.in_progress"]
    assert created["response"] == in_progress["response"]
    assert created["response"]["status"] == "in_progress"
    assert completed == {
        "type": "response.completed",
        "response": {
            **created["response"],
            "status": "completed",
            "output": [done],
            "completed_at": int(NOW_S),
            "usage": {
                "input_tokens": len(PROMPT),
                "input_tokens_details": {"cached_tokens": CACHED, "cache_write_tokens": 0},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": len(PROMPT) + 3,
            },
        },
    }


def test_the_response_object_says_what_holds() -> None:
    assert complete(answer("Hi"), reader=None) == {
        "id": "resp_" + HEX,
        "object": "response",
        "created_at": 1_700_000_000,
        "completed_at": int(NOW_S),
        "status": "completed",
        "model": "tiny",
        "output": [
            {
                "type": "message",
                "id": f"msg_{HEX}00",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}],
            }
        ],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "background": False,
        "conversation": None,
        "user": None,
        "usage": {
            "input_tokens": len(PROMPT),
            "input_tokens_details": {"cached_tokens": CACHED, "cache_write_tokens": 0},
            "output_tokens": len(encode("Hi")) + 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": len(PROMPT) + len(encode("Hi")) + 1,
        },
    }


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "add"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
    ],
)
def test_what_the_request_said_is_repeated(choice: Any) -> None:
    tool = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"}
    said = {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "reasoning": {"effort": "low", "summary": "auto"},
        "tools": [tool],
        "tool_choice": choice,
        "text": text,
        "user": "u",
        "top_logprobs": 2,
        "max_tool_calls": 3,
    }
    request = decode(json.dumps({"input": "hi", "store": True, **said}).encode(), ResponsesRequest)
    made = work("resp_" + HEX)
    response = whole(make(made, request), made, answer("Hi"))
    check(Response, response)
    assert {name: response[name] for name in said} == said
    assert response["store"] is False


def test_reasoning_and_calls_event_by_event() -> None:
    found = stream(answer(FULL, cuts=()))
    short = [event["type"].removeprefix("response.") for event in found]
    text = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
    assert list(dict.fromkeys(short[2:])) == list(
        dict.fromkeys(
            [
                *[name.replace("output_text", "reasoning_text") for name in text],
                "content_part.done",
                "output_item.done",
                *text,
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "completed",
            ]
        )
    )
    items = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert items == found[-1]["response"]["output"]
    assert items == [
        {
            "type": "reasoning",
            "id": f"rs_{HEX}00",
            "status": "completed",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Two and two."}],
        },
        {
            "type": "message",
            "id": f"msg_{HEX}01",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Let me see. 漢字 🎉\n", "annotations": [], "logprobs": []}],
        },
        {
            "type": "function_call",
            "id": f"fc_{HEX}02",
            "call_id": f"call_{HEX}02",
            "name": "add",
            "arguments": '{"a": 1, "b": [2, 3]}',
            "status": "completed",
        },
        {
            "type": "function_call",
            "id": f"fc_{HEX}03",
            "call_id": f"call_{HEX}03",
            "name": "stop",
            "arguments": "{}",
            "status": "completed",
        },
        {
            "type": "message",
            "id": f"msg_{HEX}04",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": " Done.", "annotations": [], "logprobs": []}],
        },
    ]
    thought = found[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert 0 < thought <= len(encode(THOUGHT))


def test_the_events_of_a_call_exactly() -> None:
    found = stream(answer(OTHER_CALL))
    where = {"output_index": 0, "item_id": f"fc_{HEX}00"}
    item = {"type": "function_call", "id": f"fc_{HEX}00", "call_id": f"call_{HEX}00", "name": "stop"}
    assert found[2] == {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {**item, "arguments": "", "status": "in_progress"},
    }
    *deltas, done, item_done = found[3:-1]
    assert "".join(event.pop("delta") for event in deltas) == "{}"
    assert all(event == {"type": "response.function_call_arguments.delta", **where} for event in deltas)
    told = {"name": "stop", "arguments": "{}"}  # some versions of the client need the name
    assert done == {"type": "response.function_call_arguments.done", **where, **told}
    assert item_done["item"] == {**item, "arguments": "{}", "status": "completed"}


@pytest.mark.parametrize("text", ["Hello", THOUGHT + "Hello", CALL[:-30]])
def test_an_answer_that_the_limit_cut_is_incomplete(text: str) -> None:
    parts = answer(text, finish=FinishReason.LENGTH)
    last = stream(parts)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][-1]["status"] == "incomplete"
    assert last["response"] == complete(parts)


def test_log_probabilities_go_with_the_text() -> None:
    tokens = encode("Hello world 🎉")
    logprobs = [TokenLogprobs(-float(i), [token], [-0.5]) for i, token in enumerate(tokens)]
    parts = answer("Hello world 🎉", finish=FinishReason.LENGTH, logprobs=logprobs)
    found = stream(parts, reader=None)
    told = [one for event in found if event["type"].endswith("text.delta") for one in event["logprobs"]]
    assert [one["logprob"] for one in told] == [-float(i) for i in range(len(tokens))]
    done = next(event for event in found if event["type"] == "response.output_text.done")
    assert done["logprobs"] == told
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == told
    assert complete(parts, reader=None)["output"] == found[-1]["response"]["output"]


def test_a_failure_is_a_failed_response_and_an_error() -> None:
    made = work("resp_" + HEX)
    renderer, told = make(made), Answer(made)
    begun = renderer.head()
    for part in answer(f"{THOUGHT}Let me see.")[:-3]:
        piece = told.feed(0, part)
        assert piece is not None
        begun += renderer.chunk(piece, None)
    found = events(begun + renderer.failure(ApiError("engine_crash", "It died.")))
    for number, event in enumerate(found[:-1]):
        check(EVENTS[event["type"]], event)
        assert event["sequence_number"] == number
    failed, error = found[-2:]
    check(EVENTS["error"], {name: member for name, member in error.items() if name != "error"})
    assert error["sequence_number"] == failed["sequence_number"] + 1
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "It died."}
    assert [item["status"] for item in failed["response"]["output"]] == ["completed", "incomplete"]
    assert (error["type"], error["code"], error["message"]) == ("error", "engine_crash", "It died.")
    assert error["error"]["code"] == "engine_crash"


def test_a_failure_before_everything_begins_the_stream_all_the_same() -> None:
    found = events(make(work("resp_" + HEX)).failure(ApiError("request_cancelled", "Stopped.")))
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.failed",
        "error",
    ]
    assert found[2]["response"]["error"]["code"] == "server_error"


def test_lines_hold_the_same_events() -> None:
    made = work("resp_" + HEX)
    renderer, told = ResponsesRenderer(made, REQUEST, lambda: NOW_S, NDJSON), Answer(made)
    data = renderer.head()
    for part in answer(FULL):
        piece = told.feed(0, part)
        assert piece is not None
        data += renderer.chunk(piece, None)
    lines = [json.loads(line) for line in (data + renderer.tail(told.usage)).splitlines()]
    assert [{**line, "sequence_number": None} for line in lines] == [
        {**event, "sequence_number": None} for event in stream(answer(FULL))
    ]


@given(st.lists(st.integers(0, 200)), st.sampled_from([FULL, FULL[:-30], THOUGHT, OTHER_CALL * 3, "plain <tool_call"]))
def test_any_grouping_of_tokens_streams_to_the_whole(cuts: list[int], text: str) -> None:
    response = complete(answer(text))
    assert complete(answer(text, cuts)) == response
    found = stream(answer(text, cuts))
    assert found[-1]["response"] == response
    items: list[Any] = []
    for event in found:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(items)
                items.append(event["item"])
            case "content_part.added":
                items[event["output_index"]]["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                items[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
            case "function_call_arguments.delta":
                items[event["output_index"]]["arguments"] += event["delta"]
            case "content_part.done":
                assert items[event["output_index"]]["content"] == [event["part"]]
            case "output_text.done" | "reasoning_text.done":
                assert items[event["output_index"]]["content"][event["content_index"]]["text"] == event["text"]
            case "function_call_arguments.done":
                assert items[event["output_index"]]["arguments"] == event["arguments"]
            case "output_item.done":
                assert items[event["output_index"]] == {**event["item"], "status": "in_progress"}
                items[event["output_index"]] = event["item"]
    assert items == response["output"]
