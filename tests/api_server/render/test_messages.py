import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.errors import ApiError
from api_server.render.messages import MessagesRenderer
from protocol.messages import Delta, FinishReason
from tests.api_server.render.answers import (
    CACHED,
    CALL,
    FULL,
    OTHER_CALL,
    PROMPT,
    THOUGHT,
    answer,
    events,
    streamed,
    whole,
    work,
)

HEX = "0" * 32
PARTIAL = FULL[: FULL.index("[2")]


def stream(parts: Sequence[Delta], **options: Any) -> list[Any]:
    made = work("msg_" + HEX, **options)
    return streamed(MessagesRenderer(made), made, parts)


def complete(parts: Sequence[Delta], **options: Any) -> Any:
    made = work("msg_" + HEX, **options)
    return whole(MessagesRenderer(made), made, parts)


def usage(output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": len(PROMPT) - CACHED,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED,
        "output_tokens": output_tokens,
    }


def test_a_text_exactly() -> None:
    message = {"id": "msg_" + HEX, "type": "message", "role": "assistant", "model": "tiny", "content": []}
    delta = {"type": "content_block_delta", "index": 0}
    assert stream(answer("Hello world"), reader=None) == [
        {
            "type": "message_start",
            "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": usage(0)},
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {**delta, "delta": {"type": "text_delta", "text": "Hello"}},
        {**delta, "delta": {"type": "text_delta", "text": " world"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage(3)},
        {"type": "message_stop"},
    ]


def test_a_message_exactly() -> None:
    assert complete(answer("Hello world"), reader=None) == {
        "id": "msg_" + HEX,
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hello world"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage(3),
    }


def test_thinking_and_calls() -> None:
    message = complete(answer(FULL))
    assert message["content"] == [
        {"type": "thinking", "thinking": "Two and two.", "signature": ""},
        {"type": "text", "text": "Let me see. 漢字 🎉\n"},
        {"type": "tool_use", "id": f"toolu_{HEX}02", "name": "add", "input": {"a": 1, "b": [2, 3]}},
        {"type": "tool_use", "id": f"toolu_{HEX}03", "name": "stop", "input": {}},
        {"type": "text", "text": " Done."},
    ]
    assert message["stop_reason"] == "tool_use"


def test_the_events_of_thinking_and_of_a_call_exactly() -> None:
    found = [event for event in stream(answer(THOUGHT + OTHER_CALL, cuts=())) if event["type"].startswith("content")]
    delta = {"type": "content_block_delta"}
    assert found == [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        *[
            {**event, "delta": {**event["delta"], "type": "thinking_delta"}}
            for event in found
            if "thinking" in event.get("delta", {})
        ],
        {**delta, "index": 0, "delta": {"type": "signature_delta", "signature": ""}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": f"toolu_{HEX}01", "name": "stop", "input": {}},
        },
        *[
            {**delta, "index": 1, "delta": event["delta"]}
            for event in found
            if "partial_json" in event.get("delta", {})
        ],
        {"type": "content_block_stop", "index": 1},
    ]
    assert "".join(event.get("delta", {}).get("thinking", "") for event in found) == "Two and two."
    assert "".join(event.get("delta", {}).get("partial_json", "") for event in found) == "{}"


@pytest.mark.parametrize(
    ("text", "finish", "options", "stop"),
    [
        ("Hello world", FinishReason.STOP, {}, ("end_turn", None)),
        ("Hello world", FinishReason.LENGTH, {}, ("max_tokens", None)),
        ("Hello world", FinishReason.STOP, {"stop": ("wor",)}, ("stop_sequence", "wor")),
        (OTHER_CALL, FinishReason.STOP, {}, ("tool_use", None)),
        (CALL[:-30], FinishReason.LENGTH, {}, ("max_tokens", None)),
        (f"{OTHER_CALL} Hello world", FinishReason.STOP, {"stop": ("wor",)}, ("stop_sequence", "wor")),
    ],
)
def test_why_it_stopped(text: str, finish: FinishReason, options: Any, stop: tuple[str, str | None]) -> None:
    parts = answer(text, finish=finish)
    message = complete(parts, **options)
    assert (message["stop_reason"], message["stop_sequence"]) == stop
    told = next(event for event in stream(parts, **options) if event["type"] == "message_delta")["delta"]
    assert (told["stop_reason"], told["stop_sequence"]) == stop


def test_a_call_that_the_limit_cut_has_no_input() -> None:
    message = complete(answer(PARTIAL, finish=FinishReason.LENGTH))
    assert message["content"][-1]["input"] == {}
    assert message["stop_reason"] == "max_tokens"


def test_a_failure_in_the_middle() -> None:
    renderer = MessagesRenderer(work("msg_" + HEX))
    assert events(renderer.failure(ApiError("engine_crash", "It died."))) == [
        {"type": "error", "error": {"type": "api_error", "message": "It died."}}
    ]


@given(st.lists(st.integers(0, 200)), st.sampled_from([FULL, THOUGHT, OTHER_CALL * 3, "plain <tool_call", "", CALL]))
def test_any_grouping_of_tokens_streams_to_the_whole(cuts: list[int], text: str) -> None:
    message = complete(answer(text))
    assert complete(answer(text, cuts)) == message
    found = stream(answer(text, cuts))
    assert found[0]["type"] == "message_start"
    built = found[0]["message"]
    arguments: dict[int, str] = {}
    for event in found[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(built["content"])
                built["content"].append(event["content_block"])
            case "content_block_delta":
                block, delta = built["content"][event["index"]], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "input_json_delta":
                        arguments[event["index"]] = arguments.get(event["index"], "") + delta["partial_json"]
                        block["input"] = {}
            case "message_delta":
                built |= event["delta"] | {"usage": event["usage"]}
    for index, text in arguments.items():
        built["content"][index]["input"] = json.loads(text)
    assert built == message
    assert found[-1] == {"type": "message_stop"}
