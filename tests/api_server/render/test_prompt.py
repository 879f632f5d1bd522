"""What is told of a prompt's log probabilities, streamed and not, in both APIs."""

import json
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from api_server.job import Job
from api_server.render import Renderer
from api_server.render.chat import ChatRenderer
from api_server.render.completion import CompletionRenderer
from api_server.schema.chunks import ChatChunk, CompletionChunk
from api_server.schema.responses import ChatCompletion, Completion
from api_server.text import Answer, Piece, join
from protocol.messages import Delta, FinishReason, TokenLogprobs
from protocol.sampling import SamplingParams
from tests.api_server.vocabularies import byte_level, job
from tests.fakes import made_up_scores

TOKENIZER = byte_level()
BOS = TOKENIZER.token_to_id("<|bos|>")
TEXT = "Hello world, how are you doing 𝄞"
PROMPT = [BOS, *TOKENIZER.encode(TEXT, add_special_tokens=False).ids]
NAMES = [bytes(TOKENIZER.decode([token], skip_special_tokens=False), "utf-8").decode() for token in PROMPT]


def work(prompts: Sequence[list[int]] = (PROMPT,), n: int = 1, top: int = 2, **options: Any) -> Job:
    """A job whose engine tells `top` alternatives of every prompt token and one of every output token."""
    made = job(TOKENIZER, prompts, n, **options)
    sampling = SamplingParams(max_tokens=9, prompt_logprobs=top, logprobs=1)
    return replace(made, submission=replace(made.submission, sampling=sampling))


def echoing(**options: Any) -> Job:
    offsets = [0, *(len("".join(NAMES[1:at])) for at in range(1, len(PROMPT)))]
    return work(echo=(TEXT,), echo_offsets=(offsets,), **options)


def news(given: Job, out: Sequence[int] = (5,), *, logprobs: bool = False) -> list[tuple[int, Delta]]:
    """As a mailbox hands it out: the portions of a prompt, then the tokens of its choices."""
    n, found = given.submission.n, []
    for number, prompt in enumerate(given.submission.prompts):
        for portion in made_up_scores(prompt, range(1, len(prompt)), given.submission.sampling):
            found.append((number * n, Delta(number * n, 0, [], prompt=portion)))
        for index in range(number * n, number * n + n):
            entries = [TokenLogprobs(-0.5, [token], [-0.5]) for token in out] if logprobs else None
            found.append((index, Delta(index, 0, list(out), FinishReason.LENGTH, logprobs=entries)))
    return found


def streamed(renderer: Renderer, given: Job, parts: Iterable[tuple[int, Delta]], kind: type) -> list[Any]:
    answer, data = Answer(given), renderer.head()
    for index, part in parts:
        piece = answer.feed(index, part)
        assert piece is not None
        data += renderer.chunk(piece, answer.usage if given.continuous_usage else None)
    *events, done, end = (data + renderer.tail(answer.usage)).decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    found = [event.removeprefix("data: ") for event in events]
    for event in found:
        msgspec.json.decode(event, type=kind, strict=True)
    return [json.loads(event) for event in found]


def whole(renderer: Renderer, given: Job, parts: Iterable[tuple[int, Delta]], kind: type) -> Any:
    answer = Answer(given)
    pieces: dict[int, list[Piece]] = {}
    for index, part in parts:
        piece = answer.feed(index, part)
        assert piece is not None
        pieces.setdefault(index, []).append(piece)
    body = renderer.whole([join(pieces[index]) for index in sorted(pieces)], answer.usage)
    data = body if isinstance(body, bytes) else b"".join(body)
    msgspec.json.decode(data, type=kind, strict=True)
    return json.loads(data)


def name(token: int) -> str:
    """As a client sees it: what is no character by itself is replaced."""
    return TOKENIZER.decode([token], skip_special_tokens=False)


def expected(prompt: Sequence[int], top: int) -> list[Any]:
    """The made-up log probabilities in vLLM's shape: the token's own is always the first alternative, too."""
    entries: list[Any] = [None]
    for position, token in enumerate(prompt[1:], 1):
        entry = {str(token): {"logprob": -position / 8, "rank": position, "decoded_token": name(token)}}
        for place in range(1, top):
            told = {"logprob": -position / 8 - place, "rank": place + 1, "decoded_token": name(token + place)}
            entry[str(token + place)] = told
        entries.append(entry)
    return entries


# ------------------------------------------------------------------------------------------------ prompt_logprobs


def test_a_chat_has_them_beside_its_choices() -> None:
    given = work(n=2, prompt_logprobs=2, return_token_ids=True)
    body = whole(ChatRenderer(given), given, news(given), ChatCompletion)
    assert body["prompt_logprobs"] == expected(PROMPT, 2)
    assert all("prompt_logprobs" not in choice for choice in body["choices"])
    events = streamed(ChatRenderer(given), given, news(given), ChatChunk)
    assert [entry for event in events for entry in event.get("prompt_logprobs", [])] == expected(PROMPT, 2)
    first, second, *rest = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (first["prompt_token_ids"], len(first["prompt_logprobs"])) == (PROMPT, 11)
    assert second["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}]
    assert sum("prompt_logprobs" in event for event in rest) == -(-(len(PROMPT) - 1) // 10) - 2
    roles = [event["choices"][0]["index"] for event in events if "role" in event["choices"][0]["delta"]]
    assert roles == [0, 1]


def test_completions_have_them_in_each_choice() -> None:
    given = work([PROMPT, [7], PROMPT[:5]], 2, prompt_logprobs=2)
    body = whole(CompletionRenderer(given), given, news(given), Completion)
    lists = [expected(prompt, 2) for prompt in given.submission.prompts for _ in range(2)]
    assert [choice["prompt_logprobs"] for choice in body["choices"]] == lists
    assert all(choice["logprobs"] is None for choice in body["choices"])
    told: list[list[Any]] = [[] for _ in lists]
    begun = set()
    for event in streamed(CompletionRenderer(given), given, news(given), CompletionChunk):
        (choice,) = event["choices"]
        if choice["text"]:
            begun.add(choice["index"])
        if "prompt_logprobs" in choice:
            assert choice["index"] not in begun, "what is told of the prompt comes first"
            told[choice["index"]] += choice["prompt_logprobs"]
    assert told == lists


def test_fewer_are_told_than_the_engine_gave_for_the_echo() -> None:
    given = echoing(top=3, prompt_logprobs=0)
    body = whole(CompletionRenderer(given), given, news(given, logprobs=True), Completion)
    (choice,) = body["choices"]
    assert choice["prompt_logprobs"] == expected(PROMPT, 1)
    assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:-1]] == [1] * (len(PROMPT) - 1)


@pytest.mark.parametrize("renderer", [ChatRenderer, CompletionRenderer])
def test_a_prompt_of_one_token_has_null_alone(renderer: Any) -> None:
    given = work([[7]], prompt_logprobs=2)
    kinds = (ChatCompletion, ChatChunk) if renderer is ChatRenderer else (Completion, CompletionChunk)
    body = whole(renderer(given), given, news(given), kinds[0])
    events = streamed(renderer(given), given, news(given), kinds[1])
    if renderer is CompletionRenderer:
        body, events = body["choices"][0], [event["choices"][0] for event in events]
    assert body["prompt_logprobs"] == [None]
    assert [event["prompt_logprobs"] for event in events if "prompt_logprobs" in event] == [[None]]


@pytest.mark.parametrize("renderer", [ChatRenderer, CompletionRenderer])
def test_continuous_usage_counts_no_output_while_the_prompt_is_told(renderer: Any) -> None:
    given = work(prompt_logprobs=1, include_usage=True, continuous_usage=True)
    events = streamed(renderer(given), given, news(given), ChatChunk if renderer is ChatRenderer else CompletionChunk)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts[-2:] == [1, 1]
    assert set(counts[:-2]) == {0}


# ------------------------------------------------------------------------------------------------ echo


def test_an_echo_has_the_prompt_s_tokens_in_front() -> None:
    given = echoing(n=2, return_token_ids=True)
    out = TOKENIZER.encode(" you", add_special_tokens=False).ids
    body = whole(CompletionRenderer(given), given, news(given, out, logprobs=True), Completion)
    choice, other = body["choices"]
    assert {**other, "index": 0} == choice
    assert choice["text"] == TEXT + " you"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [name(token) for token in [*PROMPT, *out]]
    assert logprobs["token_logprobs"] == [None, *(-at / 8 for at in range(1, len(PROMPT))), *[-0.5] * len(out)]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][1] == {name(PROMPT[1]): -1 / 8}
    assert logprobs["top_logprobs"][-1] == {name(out[-1]): -0.5}
    for offset, token in list(zip(logprobs["text_offset"], logprobs["tokens"], strict=True))[1:]:
        assert "\ufffd" in token or choice["text"].startswith(token, offset)

    events = streamed(CompletionRenderer(given), given, news(given, out, logprobs=True), CompletionChunk)
    for index in (0, 1):
        parts = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for field, values in logprobs.items():
            assert [value for part in parts for value in part["logprobs"][field]] == values
        assert [part["prompt_token_ids"] for part in parts if "prompt_token_ids" in part] == [PROMPT]
        assert "prompt_token_ids" in parts[0]


def test_an_echo_without_log_probabilities_is_one_chunk() -> None:
    given = work(echo=(TEXT,), prompt_logprobs=2)
    events = streamed(CompletionRenderer(given), given, news(given), CompletionChunk)
    texts = [event["choices"][0]["text"] for event in events]
    assert texts[0] == TEXT
    assert "".join(texts[1:-1]) == ""
    assert all(event["choices"][0]["logprobs"] is None for event in events)


def test_nothing_behind_the_echo() -> None:
    given = echoing(prompt_only=True)
    parts = news(given, logprobs=True)
    (choice,) = whole(CompletionRenderer(given), given, parts, Completion)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert {len(values) for values in choice["logprobs"].values()} == {len(PROMPT)}
    events = streamed(CompletionRenderer(given), given, news(given, logprobs=True), CompletionChunk)
    assert "".join(event["choices"][0]["text"] for event in events) == TEXT
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    answer = Answer(given)
    for index, part in news(given, logprobs=True):
        answer.feed(index, part)
    assert (answer.finished, answer.usage.completion_tokens) == (True, 0)


def test_a_certain_no_is_told_as_a_number() -> None:
    given = work([[7, 8]], top=1, prompt_logprobs=1)
    (portion,) = made_up_scores([7, 8], range(1, 2), given.submission.sampling)
    sure = msgspec.structs.replace(portion, logprobs=b"\0\0\0\0\0\0\xf0\xff", top_logprobs=b"\0\0\0\0\0\0\xf0\xff")
    parts = [(0, Delta(0, 0, [], prompt=sure)), (0, Delta(0, 0, [5], FinishReason.LENGTH))]
    (choice,) = whole(CompletionRenderer(given), given, parts, Completion)["choices"]
    assert choice["prompt_logprobs"][1] == {"8": {"logprob": -9999.0, "rank": 1, "decoded_token": name(8)}}


# ------------------------------------------------------------------------------------------------ long prompts


def test_a_long_body_never_exists_at_once() -> None:
    length = 800
    prompt = [5 + at % 300 for at in range(length)]
    given = work([prompt], n=2, top=20, prompt_logprobs=20, echo=("x" * length,), echo_offsets=(range(length),))
    answer, pieces = Answer(given), {0: [], 1: []}  # type: ignore[var-annotated]
    for index, part in news(given, logprobs=True):
        pieces[index].append(answer.feed(index, part))
    body = CompletionRenderer(given).whole([join(pieces[0]), join(pieces[1])], answer.usage)
    assert not isinstance(body, bytes)
    size = 0
    tracemalloc.start()
    for part in body:
        size += len(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 1_800_000
    assert peak < size / 3, "more than the interpreter's own reserves of small objects"


# ------------------------------------------------------------------------------------------------ of the output


def test_special_tokens_and_parts_of_characters_have_log_probabilities_too() -> None:
    end = TOKENIZER.token_to_id("<|end|>")
    out = [*TOKENIZER.encode("é𝄞", add_special_tokens=False).ids, end]
    entries = [TokenLogprobs(-0.25, [token, BOS], [-0.25, -3.0]) for token in out]
    given = job(TOKENIZER)
    parts = [(0, Delta(0, 0, out, FinishReason.STOP, logprobs=entries))]
    (choice,) = whole(ChatRenderer(given), given, parts, ChatCompletion)["choices"]
    assert choice["message"]["content"] == "é𝄞"
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "é𝄞<|end|>"
    assert content[-1]["token"] == "<|end|>"
    assert "\ufffd" in [entry["token"] for entry in content]
    assert content[-1]["top_logprobs"][1] == {"token": "<|bos|>", "logprob": -3.0, "bytes": list(b"<|bos|>")}
    (choice,) = whole(CompletionRenderer(given), given, parts, Completion)["choices"]
    assert choice["logprobs"]["tokens"] == [entry["token"] for entry in content]
    assert choice["logprobs"]["text_offset"][-1] == len("é𝄞")


def test_a_stop_string_cuts_log_probabilities_with_its_token() -> None:
    out = TOKENIZER.encode("Hello world, how are you", add_special_tokens=False).ids
    entries = [TokenLogprobs(-0.25, [token], [-0.25]) for token in out]
    given = replace(echoing(), stop=("how",))
    parts = [*news(given)[:-1], (0, Delta(0, 0, out, FinishReason.LENGTH, logprobs=entries))]
    (choice,) = whole(CompletionRenderer(given), given, parts, Completion)["choices"]
    assert choice["text"] == TEXT + "Hello world, "
    assert choice["stop_reason"] == "how"
    counts = {len(values) for values in choice["logprobs"].values()}
    assert len(counts) == 1
    assert len(PROMPT) < counts.pop() < len(PROMPT) + len(out)
