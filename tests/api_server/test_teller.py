"""Wherever a numbered stream is cut, what follows its number completes it."""

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from api_server.job import Job
from api_server.render import ResumableRenderer
from api_server.render.chat import ChatRenderer
from api_server.render.completion import CompletionRenderer
from api_server.render.plain import GenerateRenderer, StreamRenderer
from api_server.teller import NumberedTeller, Teller
from protocol.messages import Delta, FinishReason, FirstToken, TokenLogprobs
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from tests.api_server.vocabularies import byte_level, job

TOKENIZER = byte_level()
WORDS = ["Hello world", "naïve café", "漢字かな", "👩‍👩‍👧", "🎉", "The end", " of the friend", "zé", "日本", "\n\n"]
OUTPUTS = 1000
DONE = b"[DONE]"


def output(draw: random.Random) -> list[int]:
    """Tokens of a text of all planes, some of its bytes alone, and now and then an end of sequence."""
    text = "".join(draw.choices(WORDS, k=draw.randint(1, 6)))
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    if draw.random() < 0.5:
        tokens.insert(draw.randrange(len(tokens)), draw.choice(TOKENIZER.encode("字🎉é", add_special_tokens=False).ids))
    return tokens + ([1] if draw.random() < 0.5 else [])


def log(draw: random.Random, tokens: list[int], *, grammar: bool, measured: bool) -> list[Delta]:
    """As the engine says it, in some pieces. The end of a grammar may come behind the last token."""
    borders = sorted({0, len(tokens), *(draw.randrange(len(tokens)) for _ in range(draw.randint(0, len(tokens))))})
    found = [
        Delta(0, start, tokens[start:end], logprobs=[entry(token) for token in tokens[start:end]] if measured else None)
        for start, end in pairwise(borders)
    ]
    finish = FinishReason.STOP if tokens[-1] == 1 or grammar else FinishReason.LENGTH
    if grammar and tokens[-1] != 1 and draw.random() < 0.7:
        found.append(Delta(0, len(tokens), []))
    found[-1].finish = finish
    found[0].first = FirstToken(0.0, 0.0, 0)
    return found


def entry(token: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 8, [token], [-token / 8])


def interleaved(draw: random.Random, logs: list[list[Delta]]) -> Iterator[tuple[int, Delta]]:
    waiting = [list(one) for one in logs]
    while any(waiting):
        index = draw.choice([index for index, one in enumerate(waiting) if one])
        yield index, waiting[index].pop(0)


def told(teller: Teller, news: Iterator[tuple[int, Delta]]) -> bytes:
    data = teller.head()
    for index, delta in news:
        data += teller.tell(index, delta)
    assert teller.finished
    return data + teller.tail()


def events_of(body: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        first, _, rest = event.partition(b"\n")
        found.append((first, rest) if first.startswith(b"id: ") else (b"", event))
    return [(number.removeprefix(b"id: "), data.removeprefix(b"data: ")) for number, data in found]


def joined(events: list[tuple[bytes, bytes]]) -> dict[Any, Any]:
    """What a client puts together."""
    found: dict[Any, Any] = {"ends": 0}
    for _, data in events:
        if data == DONE:
            found["ends"] += 1
            continue
        chunk = json.loads(data)
        if "token" in chunk:
            found["text"] = found.get("text", "") + chunk["token"]
            found["ids"] = found.get("ids", []) + [chunk[name] for name in ("token_id",) if name in chunk]
            continue
        if not chunk["choices"]:
            found["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            said = found.setdefault(choice["index"], {"text": "", "roles": 0, "ids": [], "logprobs": [], "ends": []})
            delta = choice.get("delta", {})
            said["text"] += choice.get("text", "") or delta.get("content", "") or ""
            said["roles"] += "role" in delta
            said["ids"] += choice.get("token_ids", [])
            logprobs = choice["logprobs"] or {}
            said["logprobs"] += logprobs.get("content", []) or logprobs.get("token_logprobs", [])
            said["ends"] += [(choice["finish_reason"], choice["stop_reason"])] if choice["finish_reason"] else []
    return found


def renderer(kind: str, work: Job) -> ResumableRenderer:
    match kind:
        case "chat":
            return ChatRenderer(work)
        case "completion":
            return CompletionRenderer(work)
        case "generate":
            return GenerateRenderer(work, lambda: 0.0)
        case _:
            return StreamRenderer(work, resumable=True)


def some_job(draw: random.Random, kind: str, n: int) -> tuple[Job, bool, bool]:
    rich = kind in ("chat", "completion")
    measured, grammar = rich and draw.random() < 0.3, draw.random() < 0.3
    options: dict[str, Any] = {
        "stop": tuple(draw.choices(["字", "The", "friend of", "é", "👧🎉", "\n\nH"], k=draw.randint(0, 2))),
        "include_stop": draw.random() < 0.3,
        "include_usage": rich,
        "continuous_usage": rich and draw.random() < 0.3,
        "return_token_ids": rich and draw.random() < 0.5,
        "echo": ("Echo",) if rich and draw.random() < 0.3 else None,
        "resumable": True,
    }
    work = job(TOKENIZER, n=n, **options)
    sampling = SamplingParams(
        max_tokens=100,
        logprobs=0 if measured else None,
        grammar=Grammar(GrammarKind.REGEX, ".*") if grammar else None,
    )
    object.__setattr__(work.submission, "sampling", sampling)
    return work, grammar, measured


@pytest.mark.parametrize("kind", ["chat", "completion", "generate", "text"])
def test_the_rest_completes_what_was_seen_from_every_number_of_many_outputs(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(OUTPUTS // 4):
        n = draw.randint(1, 3) if kind in ("chat", "completion") else 1
        work, grammar, measured = some_job(draw, kind, n)
        outputs = [output(draw) for _ in range(n)]

        def say(
            seen: list[int] | None = None,
            work: Job = work,
            outputs: list[list[int]] = outputs,
            grammar: bool = grammar,
            measured: bool = measured,
        ) -> list[tuple[bytes, bytes]]:
            logs = [log(draw, tokens, grammar=grammar, measured=measured) for tokens in outputs]
            teller = NumberedTeller(work, renderer(kind, work), lambda index, pos: None, seen)
            return events_of(told(teller, interleaved(draw, logs)))

        events = say()
        whole = joined(events)
        plain = Teller(work, renderer(kind, work), lambda index, pos: None)
        logs = [log(draw, tokens, grammar=grammar, measured=measured) for tokens in outputs]
        assert joined(events_of(told(plain, interleaved(draw, logs)))) == whole
        for place, (number, _) in enumerate(events):
            if number:
                seen = list(map(int, number.split(b".")[1:]))
                assert joined(events[: place + 1] + say(seen)) == whole, (number, outputs)


def test_a_finish_is_never_behind_the_number_of_its_last_token() -> None:
    draw = random.Random(7)
    for _ in range(200):
        work, grammar, measured = some_job(draw, "chat", 1)
        logs = [log(draw, output(draw), grammar=grammar, measured=measured)]
        teller = NumberedTeller(work, ChatRenderer(work), lambda index, pos: None)
        events = [event for event in events_of(told(teller, interleaved(draw, logs))) if event[0]]
        numbers = [number for number, _ in events]
        assert len(set(numbers)) == len(numbers)
        assert json.loads(events[-1][1])["choices"][0]["finish_reason"] in ("stop", "length")
        assert all(json.loads(data)["choices"][0]["finish_reason"] is None for _, data in events[:-1])
