"""Chat completions with reasoning and calls in them, streamed and whole."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from api_server.job import Job
from api_server.parsing import Reader
from api_server.parsing.hermes import HermesReader
from api_server.parsing.reasoning import ReasoningReader
from api_server.render.chat import ChatRenderer
from api_server.schema import chunks, responses
from api_server.text import Answer
from protocol.messages import Delta, FinishReason, TokenLogprobs
from tests.api_server.test_render import one, streamed, whole
from tests.api_server.vocabularies import byte_level, job

TOKENIZER = byte_level()
END = TOKENIZER.token_to_id("<|end|>")
THOUGHT = "<think>\nTwo and two.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'
OTHER_CALL = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
FULL = f"{THOUGHT}Let me see. 漢字 🎉\n{CALL}\n{OTHER_CALL}"
STOP = FinishReason.STOP


def reader() -> Reader:
    return ReasoningReader(HermesReader(), opened=False)


def work(**options: Any) -> Job:
    return job(TOKENIZER, **{"reader": reader, **options})


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def answer(
    text: str, cuts: Iterable[int] = range(500), finish: FinishReason = STOP, **more: Any
) -> list[tuple[int, Delta]]:
    """The text token by token, or cut as told; the token that ends it is not shown."""
    return one([*encode(text), *([END] if finish is STOP else [])], cuts, finish, **more)


def deltas(events: Iterable[Any], index: int = 0) -> list[dict[str, Any]]:
    """What is new of one choice, chunk by chunk."""
    return [
        choice["delta"]
        for event in events
        for choice in event["choices"]
        if choice["index"] == index and choice["delta"]
    ]


def joined(events: Sequence[Any], index: int = 0) -> dict[str, Any]:
    """The message that a client makes of the chunks. Checks what clients rely on."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for delta in deltas(events, index):
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            function = call["function"]
            assert function["arguments"]
            if call["index"] == len(message["tool_calls"]):
                assert call.keys() == {"index", "id", "type", "function"}
                assert function.keys() == {"name", "arguments"}
                message["tool_calls"].append({**call, "function": {**function}})
            else:
                assert call.keys() == {"index", "function"}
                assert call["index"] == len(message["tool_calls"]) - 1
                assert function.keys() == {"arguments"}
                message["tool_calls"][-1]["function"]["arguments"] += function["arguments"]
    return message


def check(events: Sequence[Any]) -> None:
    for event in events:
        ChatCompletionChunk.model_validate(event)
        msgspec.convert(event, chunks.ChatChunk)


def test_reasoning_content_and_calls_are_told_as_they_come() -> None:
    events = streamed(ChatRenderer, work(), answer(FULL))
    check(events)
    told = deltas(events)
    kinds = [next(iter(delta)) for delta in told]
    assert kinds[0] == "role"
    order = sorted(set(kinds[1:]), key=kinds.index)
    assert order == ["reasoning_content", "content", "tool_calls"]
    assert all(kinds.count(kind) > 3 for kind in order)
    message = joined(events)
    assert message["content"] == "Let me see. 漢字 🎉\n"
    assert message["reasoning_content"] == "Two and two."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "add", "arguments": '{"a": 1, "b": [2, 3]}'},
        {"name": "stop", "arguments": "{}"},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["tool_calls"]


def test_a_call_chunk_by_chunk() -> None:
    events = streamed(ChatRenderer, work(), answer(OTHER_CALL))
    call = {"index": 0, "id": events[1]["choices"][0]["delta"]["tool_calls"][0]["id"], "type": "function"}
    assert deltas(events) == [
        {"role": "assistant", "content": ""},
        {"tool_calls": [{**call, "function": {"name": "stop", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    ]
    assert len(call["id"]) == len("call_") + 24
    assert call["id"].startswith("call_")
    int(call["id"].removeprefix("call_"), 16)


def test_a_piece_is_one_chunk_whatever_it_says() -> None:
    text = FULL + " Done."
    role, last = streamed(ChatRenderer, work(), answer(text, ()))
    message = joined([role, last])
    assert message == joined(streamed(ChatRenderer, work(), answer(text)))
    assert (message["reasoning_content"], len(message["tool_calls"])) == ("Two and two.", 2)
    assert message["content"] == "Let me see. 漢字 🎉\n Done."


def test_the_whole_is_the_stream_joined() -> None:
    body = whole(ChatRenderer, work(), answer(FULL))
    ChatCompletion.model_validate(body)
    msgspec.convert(body, responses.ChatCompletion)
    message = body["choices"][0]["message"]
    stream = joined(streamed(ChatRenderer, work(), answer(FULL)))
    assert message["content"] == stream["content"]
    assert message["reasoning_content"] == stream["reasoning_content"]
    assert message["tool_calls"] == [
        {key: call[key] for key in ("id", "type", "function")} for call in stream["tool_calls"]
    ]
    assert body["choices"][0]["finish_reason"] == "tool_calls"


def test_content_is_null_where_there_is_none_beside_calls_or_reasoning() -> None:
    for text, content in ((CALL, None), (THOUGHT, None), ("Hello", "Hello"), ("", "")):
        message = whole(ChatRenderer, work(), answer(text))["choices"][0]["message"]
        assert message["content"] == content
        assert ("tool_calls" in message) == (text == CALL)
        assert ("reasoning_content" in message) == (text == THOUGHT)
        assert "function_call" not in message


@pytest.mark.parametrize(
    ("text", "finish", "options", "name"),
    [
        (CALL, STOP, {}, "tool_calls"),
        (CALL[:-30], FinishReason.LENGTH, {}, "length"),
        (CALL, STOP, {"named_call": True}, "stop"),
        (CALL, STOP, {"legacy_calls": True}, "tool_calls"),
        (CALL, STOP, {"legacy_calls": True, "named_call": True}, "stop"),
        ("Hello", STOP, {}, "stop"),
        ("Hello", FinishReason.LENGTH, {}, "length"),
    ],
)
def test_why_it_ended(text: str, finish: FinishReason, options: dict[str, Any], name: str) -> None:
    events = streamed(ChatRenderer, work(**options), answer(text, finish=finish))
    assert events[-1]["choices"][0]["finish_reason"] == name
    assert whole(ChatRenderer, work(**options), answer(text, finish=finish))["choices"][0]["finish_reason"] == name


def test_the_older_shape_of_a_call() -> None:
    events = streamed(ChatRenderer, work(legacy_calls=True), answer(OTHER_CALL))
    check(events)
    assert deltas(events)[1:] == [
        {"function_call": {"name": "stop", "arguments": "{"}},
        {"function_call": {"arguments": "}"}},
    ]
    message = whole(ChatRenderer, work(legacy_calls=True), answer(OTHER_CALL))["choices"][0]["message"]
    assert message["function_call"] == {"name": "stop", "arguments": "{}"}
    assert message["content"] is None
    assert "tool_calls" not in message


def test_ids_of_calls_are_the_same_for_whoever_renders_them_and_no_two_alike() -> None:
    def ids(**options: Any) -> list[str]:
        events = streamed(ChatRenderer, work(**options), [part for i in (0, 1) for part in choice(i)])
        return [call["id"] for index in (0, 1) for call in joined(events, index)["tool_calls"]]

    def choice(index: int) -> list[tuple[int, Delta]]:
        return [(index, delta) for _, delta in answer(CALL + OTHER_CALL)]

    found = ids(n=2)
    assert len(set(found)) == 4
    assert ids(n=2) == found


def test_each_choice_has_a_reader_of_its_own() -> None:
    texts = (CALL, f"{THOUGHT}Hello", "Hi")
    parts = [[(i, delta) for _, delta in answer(text)] for i, text in enumerate(texts)]
    turns = [part for turn in range(max(map(len, parts))) for own in parts for part in own[turn : turn + 1]]
    events = streamed(ChatRenderer, work(n=3, include_usage=True), turns)
    messages = [joined(events, index) for index in range(3)]
    assert [len(message["tool_calls"]) for message in messages] == [1, 0, 0]
    assert [message["content"] for message in messages] == ["", "Hello", "Hi"]
    assert [message["reasoning_content"] for message in messages] == ["", "Two and two.", ""]
    finishes = {c["index"]: c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]}
    assert finishes == {0: "tool_calls", 1: "stop", 2: "stop"}


# ------------------------------------------------------------------------------------------------ what rides along


def logprobs(count: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(-0.5 - i, [], []) for i in range(count)]


@pytest.mark.parametrize("cuts", [range(500), (), (5, 20, 21, 60)])
def test_log_probabilities_and_token_ids_come_with_tokens_whose_text_is_held_back(cuts: Iterable[int]) -> None:
    text = f"{THOUGHT}{CALL}"
    tokens = encode(text)
    made = work(return_token_ids=True)
    parts = answer(text, cuts, FinishReason.LENGTH, logprobs=logprobs(len(tokens)))
    events = streamed(ChatRenderer, made, parts)
    check(events)
    choices = [event["choices"][0] for event in events]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == tokens
    told = [entry["logprob"] for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert told == [-0.5 - i for i in range(len(tokens))]
    assert choices[-1]["finish_reason"] == "length"


def test_tokens_whose_text_is_held_back_are_no_chunk_by_themselves() -> None:
    events = streamed(ChatRenderer, work(), answer(CALL))
    assert all(event["choices"][0]["delta"] for event in events[:-1])


def test_tokens_of_reasoning_are_counted() -> None:
    made = work(include_usage=True, continuous_usage=True)
    events = streamed(ChatRenderer, made, answer(f"{THOUGHT}Hello"))
    check(events)
    thought = len(encode(THOUGHT.partition("\n</think>")[0]))
    counts = [event["usage"]["completion_tokens_details"]["reasoning_tokens"] for event in events]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, thought)
    usage = whole(ChatRenderer, work(), answer(f"{THOUGHT}Hello"))["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert "completion_tokens_details" not in whole(ChatRenderer, job(TOKENIZER), answer("Hello"))["usage"]


def test_echo_comes_before_what_is_read() -> None:
    events = streamed(ChatRenderer, work(echo=("Once <think>",)), answer(f"{THOUGHT}Hello"))
    assert joined(events)["content"] == "Once <think>Hello"
    message = whole(ChatRenderer, work(echo=("Once ",)), answer(CALL))["choices"][0]["message"]
    assert message["content"] == "Once "


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_cuts_what_is_read(include: bool) -> None:
    made = work(stop=('"b"',), include_stop=include)
    events = streamed(ChatRenderer, made, one(encode(CALL[: CALL.index('"b"') + 3]), finish=None))
    [call] = joined(events)["tool_calls"]
    assert call["function"]["arguments"] == '{"a": 1, ' + ('"b"' if include else "")
    last = events[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("tool_calls", '"b"')


# ------------------------------------------------------------------------------------------------ any split

PIECES = st.sampled_from(
    ["<think>", "</think>", CALL, OTHER_CALL, CALL[:30], "<tool_", "\n", " a", "漢", "🎉", '{"', "}"]
)


@given(st.lists(PIECES, max_size=12).map("".join), st.lists(st.integers(0, 400), max_size=8), st.booleans())
def test_any_split_gives_the_same_message(text: str, cuts: list[int], ended: bool) -> None:
    finish = STOP if ended else FinishReason.LENGTH
    if not (text or ended):
        return
    by_token = streamed(ChatRenderer, work(), answer(text, finish=finish))
    cut = streamed(ChatRenderer, work(), answer(text, cuts, finish))
    assert joined(cut) == joined(by_token)
    assert cut[-1]["choices"][0]["finish_reason"] == by_token[-1]["choices"][0]["finish_reason"]
    message = whole(ChatRenderer, work(), answer(text, cuts, finish))["choices"][0]["message"]
    assert (message["content"] or "") == joined(by_token)["content"]


@given(st.lists(PIECES, max_size=8).map("".join), st.data())
def test_what_is_told_by_a_token_depends_on_the_tokens_up_to_it_alone(text: str, data: st.DataObject) -> None:
    tokens = encode(text)
    cuts = data.draw(st.lists(st.integers(1, max(1, len(tokens))), max_size=5))

    def told(cuts: Iterable[int]) -> dict[int, str]:
        """All that was sent, by the position up to which it was."""
        made, found, sent = work(), {}, ""
        reading, renderer = Answer(made), ChatRenderer(made)
        for _, delta in one(tokens, cuts, finish=None) if tokens else []:
            piece = reading.feed(0, delta)
            assert piece is not None
            lines = renderer.chunk(piece, None).decode().split("\n\n")[:-1]
            sent = json.dumps(joined_parts(sent, [json.loads(line.removeprefix("data: ")) for line in lines]))
            found[piece.pos] = sent
        return found

    every, some = told(range(1, len(tokens))), told(cuts)
    assert all(every[position] == sent for position, sent in some.items())


def joined_parts(sent: str, events: list[Any]) -> dict[str, Any]:
    """What was sent before, and what these events add."""
    before = json.loads(sent) if sent else {"content": "", "reasoning_content": "", "calls": {}}
    for delta in deltas(events):
        before["content"] += delta.get("content") or ""
        before["reasoning_content"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", []):
            known = before["calls"].setdefault(str(call["index"]), "")
            name = call["function"].get("name", "")
            before["calls"][str(call["index"])] = known + name + call["function"]["arguments"]
    return before
