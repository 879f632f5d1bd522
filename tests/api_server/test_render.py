import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from api_server.job import Job
from api_server.render import Renderer
from api_server.render.chat import ChatRenderer
from api_server.render.completion import CompletionRenderer
from api_server.render.plain import GenerateRenderer, StreamRenderer
from api_server.text import Answer, Piece, join
from protocol.messages import Delta, FinishReason, FirstToken, TokenLogprobs
from tests.api_server.vocabularies import byte_level, deltas, job

TOKENIZER = byte_level()
END = TOKENIZER.token_to_id("<|end|>")
USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 2,
    "total_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def streamed(make: Callable[[Job], Renderer], work: Job, parts: Iterable[tuple[int, Delta]]) -> list[Any]:
    """The events of a stream, decoded; [DONE] as it is. What is not exactly an event fails here."""
    answer, renderer = Answer(work), make(work)
    data = renderer.head()
    for index, part in parts:
        if (piece := answer.feed(index, part)) is not None:
            data += renderer.chunk(piece, answer.usage if work.continuous_usage else None)
    assert answer.finished
    data += renderer.tail(answer.usage)
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def text_of(events: Iterable[Any]) -> str:
    """The text of any route's events or body, of its first choice."""
    text = ""
    for event in events:
        choice = event["choices"][0] if "choices" in event else event
        told = choice.get("delta") or choice.get("message") or {}
        text += choice.get("text", "") or choice.get("token", "") or told.get("content", "")
    return text


def whole(make: Callable[[Job], Renderer], work: Job, parts: Iterable[tuple[int, Delta]]) -> Any:
    answer = Answer(work)
    pieces: dict[int, list[Piece]] = {}
    for index, part in parts:
        if (piece := answer.feed(index, part)) is not None:
            pieces.setdefault(index, []).append(piece)
    body = make(work).whole([join(pieces[index]) for index in sorted(pieces)], answer.usage)
    return json.loads(body if isinstance(body, bytes) else b"".join(body))


def one(
    tokens: list[int], cuts: Iterable[int] = range(100), finish: FinishReason = FinishReason.LENGTH, **more: Any
) -> list[tuple[int, Delta]]:
    return [(0, part) for part in deltas(tokens, list(cuts), finish, **more)]


# ------------------------------------------------------------------------------------------------ chat


def test_a_chat_stream_exactly() -> None:
    first, second = encode("Hello world")
    events = streamed(ChatRenderer, job(TOKENIZER), one([first, second, END], finish=FinishReason.STOP))
    shared = {
        "id": "chatcmpl-" + "0" * 32,
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": "fp_0",
    }
    plain = {"index": 0, "logprobs": None, "finish_reason": None}
    assert events == [
        {**shared, "choices": [{**plain, "delta": {"role": "assistant", "content": ""}}]},
        {**shared, "choices": [{**plain, "delta": {"content": "Hello"}}]},
        {**shared, "choices": [{**plain, "delta": {"content": " world"}}]},
        {**shared, "choices": [{**plain, "delta": {}, "finish_reason": "stop", "stop_reason": None}]},
    ]
    for event in events:
        ChatCompletionChunk.model_validate(event)


def test_usage_comes_last_and_is_null_before() -> None:
    events = streamed(ChatRenderer, job(TOKENIZER, include_usage=True), one(encode("Hello world")))
    assert [event["usage"] for event in events] == [None, None, None, USAGE]
    assert [len(event["choices"]) for event in events] == [1, 1, 1, 0]
    assert all("usage" not in event for event in streamed(ChatRenderer, job(TOKENIZER), one(encode("Hello world"))))


def test_continuous_usage_counts_up() -> None:
    work = job(TOKENIZER, include_usage=True, continuous_usage=True)
    events = streamed(ChatRenderer, work, one(encode("Hello world")))
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 1, 2, 2]
    echoing = job(TOKENIZER, include_usage=True, continuous_usage=True, echo=("Once ",))
    for make in (ChatRenderer, CompletionRenderer):
        counts = [event["usage"]["completion_tokens"] for event in streamed(make, echoing, one(encode("Hello world")))]
        assert counts == [0] * (len(counts) - 3) + [1, 2, 2]


def test_the_finish_reason_rides_on_the_last_text() -> None:
    events = streamed(ChatRenderer, job(TOKENIZER), one(encode("Hello world")))
    assert events[-1]["choices"][0]["delta"] == {"content": " world"}
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "length"]


def test_stop_strings_and_stop_tokens_are_named() -> None:
    [*_, last] = streamed(ChatRenderer, job(TOKENIZER, stop=("world",)), one(encode("Hello world"), range(100)))
    assert last["choices"][0]["stop_reason"] == "world"
    parts = one([*encode("Hello"), 7], finish=FinishReason.STOP)
    parts[-1][1].stop_token = 7
    assert streamed(ChatRenderer, job(TOKENIZER), parts)[-1]["choices"][0]["stop_reason"] == 7


def test_each_choice_opens_once_and_finishes_once() -> None:
    tokens = encode("Hello world")
    parts = [(index, part) for part in deltas(tokens, range(10)) for index in (2, 0, 1)]
    finished = [(index, Delta(0, 2, [END], FinishReason.STOP)) for index in (1, 2, 0)]
    events = streamed(ChatRenderer, job(TOKENIZER, n=3), [(i, Delta(0, p.pos, p.tokens)) for i, p in parts] + finished)
    for index in range(3):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own] == [None, None, None, "stop"]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Hello world"


def test_a_token_without_text_is_no_event() -> None:
    tokens = encode("𝄞")
    assert len(tokens) > 1
    events = streamed(ChatRenderer, job(TOKENIZER), one(tokens))
    assert [event["choices"][0]["delta"].get("content") for event in events] == ["", "𝄞"]


def test_token_ids_of_prompt_and_output() -> None:
    tokens = encode("𝄞 Hello")
    events = streamed(ChatRenderer, job(TOKENIZER, prompts=[[5, 6]], return_token_ids=True), one(tokens))
    assert events[0]["prompt_token_ids"] == [5, 6]
    assert sum("prompt_token_ids" in event for event in events) == 1
    assert [token for event in events for token in event["choices"][0].get("token_ids", [])] == tokens


def test_echo_of_a_continued_message_comes_after_the_role() -> None:
    events = streamed(ChatRenderer, job(TOKENIZER, echo=("Once ",)), one(encode("Hello")))
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["", "Once ", "Hello"]
    assert whole(ChatRenderer, job(TOKENIZER, echo=("Once ",)), one(encode("Hello")))["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Once Hello",
        "refusal": None,
    }


def test_a_whole_chat_completion() -> None:
    work = job(TOKENIZER, prompts=[[5, 6]], n=2, return_token_ids=True)
    tokens = encode("Hello world")
    parts = [(i, Delta(0, 0, tokens, FinishReason.LENGTH, first=FirstToken(0, 0, 1))) for i in (1, 0)]
    body = whole(ChatRenderer, work, parts)
    completion = ChatCompletion.model_validate(body)
    assert completion.usage is not None
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert body["prompt_token_ids"] == [5, 6]
    assert body["choices"][0]["token_ids"] == tokens
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    bare = whole(ChatRenderer, job(TOKENIZER), one(tokens))
    assert "prompt_token_ids" not in bare
    assert "token_ids" not in bare["choices"][0]
    assert bare["object"] == "chat.completion"


# ------------------------------------------------------------------------------------------------ logprobs


def logprobs_of(tokens: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(-0.5, [token, 7], [-0.5, float("-inf")]) for token in tokens]


def test_chat_logprobs_streamed_and_whole_agree() -> None:
    tokens = encode("Hello 𝄞")
    parts = one(tokens, logprobs=logprobs_of(tokens))
    events = streamed(ChatRenderer, job(TOKENIZER), parts)
    for event in events:
        ChatCompletionChunk.model_validate(event)
    content = [entry for event in events for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    body = whole(ChatRenderer, job(TOKENIZER), one(tokens, logprobs=logprobs_of(tokens)))
    assert body["choices"][0]["logprobs"] == {"content": content, "refusal": None}
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "Hello 𝄞"
    assert content[0]["token"] == "Hello"
    assert content[0]["logprob"] == -0.5
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -9999.0]


def test_completion_logprobs_have_offsets_into_the_echoed_text() -> None:
    tokens = encode("Hello world")
    work = job(TOKENIZER, echo=("The ",))
    body = whole(CompletionRenderer, work, one(tokens, logprobs=logprobs_of(tokens)))
    choice = Completion.model_validate(body).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.tokens == ["Hello", " world"]
    for offset, name in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(name)
    assert choice.logprobs.token_logprobs == [-0.5, -0.5]
    assert body["choices"][0]["logprobs"]["top_logprobs"][0] == {"Hello": -0.5, TOKENIZER.decode([7]): -9999.0}


def test_completion_logprobs_always_hold_the_chosen_token() -> None:
    tokens = encode("Hello")
    entry = TokenLogprobs(float("-inf"), [7], [-0.1])
    body = whole(CompletionRenderer, job(TOKENIZER), one(tokens, logprobs=[entry]))
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"Hello": -9999.0, TOKENIZER.decode([7]): -0.1}]


def test_completion_logprobs_streamed_and_whole_agree() -> None:
    tokens = encode("Hello 𝄞 world")
    events = streamed(CompletionRenderer, job(TOKENIZER), one(tokens, logprobs=logprobs_of(tokens)))
    body = whole(CompletionRenderer, job(TOKENIZER), one(tokens, logprobs=logprobs_of(tokens)))
    for name, values in body["choices"][0]["logprobs"].items():
        assert [value for event in events for value in event["choices"][0]["logprobs"][name]] == values


@pytest.mark.parametrize("make", [ChatRenderer, CompletionRenderer])
def test_many_log_probabilities_are_made_a_part_at_a_time(make: Any) -> None:
    tokens = [100 + at % 200 for at in range(400)]
    entries = [TokenLogprobs(-0.5, list(range(50, 70)), [-0.5] * 20) for _ in tokens]
    work = job(TOKENIZER, n=2)
    answer = Answer(work)
    pieces = [answer.feed(index, Delta(index, 0, tokens, FinishReason.LENGTH, logprobs=entries)) for index in range(2)]
    body = make(work).whole(pieces, answer.usage)
    assert not isinstance(body, bytes), "the event loop would stand still for as long as it takes to make it"
    sizes = [len(part) for part in body]
    assert max(sizes) < sum(sizes) / 10


# ------------------------------------------------------------------------------------------------ completions


def test_a_completion_stream_exactly() -> None:
    events = streamed(CompletionRenderer, job(TOKENIZER), one([*encode("Hello"), END], finish=FinishReason.STOP))
    shared = {
        "id": "chatcmpl-" + "0" * 32,
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": "fp_0",
    }
    plain = {"index": 0, "logprobs": None}
    assert events == [
        {**shared, "choices": [{**plain, "text": "Hello", "finish_reason": None}]},
        {**shared, "choices": [{**plain, "text": "", "finish_reason": "stop", "stop_reason": None}]},
    ]


def test_several_prompts_echoed_with_their_token_ids() -> None:
    work = job(TOKENIZER, prompts=[[5], [6, 7]], n=2, echo=("one ", "two "), return_token_ids=True)
    tokens = encode("Hello")
    parts = [(i, Delta(0, 0, list(tokens), FinishReason.LENGTH)) for i in (3, 1, 0, 2)]
    events = streamed(CompletionRenderer, work, parts)
    texts = dict.fromkeys(range(4), "")
    prompts: dict[int, list[int]] = {}
    for event in events:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
        if "prompt_token_ids" in choice:
            assert choice["index"] not in prompts
            prompts[choice["index"]] = choice["prompt_token_ids"]
    assert texts == {0: "one Hello", 1: "one Hello", 2: "two Hello", 3: "two Hello"}
    assert prompts == {0: [5], 1: [5], 2: [6, 7], 3: [6, 7]}
    body = whole(CompletionRenderer, work, [(i, Delta(0, 0, list(tokens), FinishReason.LENGTH)) for i in range(4)])
    assert [choice["text"] for choice in body["choices"]] == [texts[i] for i in range(4)]
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == [prompts[i] for i in range(4)]
    assert body["usage"]["prompt_tokens"] == 3


# ------------------------------------------------------------------------------------------------ the plain routes


def test_generate_is_one_event_per_token_with_its_time() -> None:
    clock = iter([0.0, 0.010, 0.020, 0.060]).__next__
    tokens = [*encode("Hello 𝄞"), END]
    work = job(TOKENIZER)
    parts = one(tokens, [1, 2], FinishReason.STOP)
    parts[0][1].first = FirstToken(0.001, 0.0075)
    events = streamed(lambda found: GenerateRenderer(found, clock), work, parts)
    assert [event["token_id"] for event in events] == tokens
    assert "".join(event["token"] for event in events) == "Hello 𝄞"
    assert events[0] == {"token": "Hello", "token_id": tokens[0], "prefill_time_ms": 7.5}
    assert events[1]["step_ms"] == 10.0
    rest = len(tokens) - 2
    assert [event["step_ms"] for event in events[2:]] == [round(40 / rest, 3)] * rest


@pytest.mark.parametrize("make", [ChatRenderer, CompletionRenderer, GenerateRenderer, StreamRenderer])
def test_text_that_a_late_finish_frees_is_shown(make: Any) -> None:
    tokens = encode("the en")
    parts = [*one(tokens), (0, Delta(0, len(tokens), [], FinishReason.LENGTH))]
    parts[-2][1].finish = None
    late = (lambda found: GenerateRenderer(found, lambda: 0.0)) if make is GenerateRenderer else make
    events = streamed(late, job(TOKENIZER, stop=("end",)), parts)
    if make is GenerateRenderer:
        assert [event["token_id"] for event in events[:-1]] == tokens
        assert events[-1] == {"token": "en"}
    assert text_of(events) == "the en"
    body = whole(late, job(TOKENIZER, stop=("end",)), parts)
    assert text_of([body]) == "the en"


@pytest.mark.parametrize("make", [ChatRenderer, CompletionRenderer, GenerateRenderer, StreamRenderer])
def test_a_choice_without_an_end_is_never_left_out(make: Any) -> None:
    work = job(TOKENIZER)
    renderer = make(work, lambda: 0.0) if make is GenerateRenderer else make(work)
    unfinished = Piece(0, ["Hello"], encode("Hello"), 1)
    with pytest.raises(ValueError, match="not ended"):
        renderer.whole([unfinished], Answer(work).usage)


def test_generate_whole() -> None:
    clock = iter([1.0, 1.5]).__next__
    tokens = encode("Hello world")
    parts = one(tokens)
    parts[0][1].first = FirstToken(0.001, 0.0075)
    body = whole(lambda found: GenerateRenderer(found, clock), job(TOKENIZER), parts)
    assert body.pop("id") == "chatcmpl-" + "0" * 32
    assert body == {
        "text": "Hello world",
        "token_ids": tokens,
        "finish_reason": "length",
        "prefill_time_ms": 7.5,
        "total_time_ms": 500.0,
        "usage": USAGE,
    }


def test_the_stream_of_texts() -> None:
    events = streamed(StreamRenderer, job(TOKENIZER), one([*encode("Hello 𝄞"), END], finish=FinishReason.STOP))
    assert events == [{"token": "Hello"}, {"token": " "}, {"token": "𝄞"}]
    assert whole(StreamRenderer, job(TOKENIZER), one(encode("Hello")))["text"] == "Hello"


def test_the_last_piece_of_a_resumable_stream_is_always_an_event() -> None:
    renderer, answer = StreamRenderer(job(TOKENIZER), resumable=True), Answer(job(TOKENIZER))
    sent = b""
    for _, part in one([*encode("Hello"), END], finish=FinishReason.STOP):
        piece = answer.feed(0, part)
        assert piece is not None
        sent += renderer.chunk(piece, None)
    assert sent == b'data: {"token":"Hello"}\n\ndata: {"token":""}\n\n'


# ------------------------------------------------------------------------------------------------ any text


@pytest.mark.parametrize("make", [ChatRenderer, CompletionRenderer, StreamRenderer])
@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 40)))
def test_any_text_arrives_whole(make: Any, text: str, cuts: list[int]) -> None:
    tokens = encode(text)
    if not tokens:
        return
    events = streamed(make, job(TOKENIZER, skip_special_tokens=False), one(tokens, cuts))
    assert text_of(events) == text
