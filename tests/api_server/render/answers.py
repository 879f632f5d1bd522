"""Answers with reasoning, text and calls in them, and the events of their streams."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from api_server.job import Job
from api_server.parsing import Reader
from api_server.parsing.hermes import HermesReader
from api_server.parsing.reasoning import ReasoningReader
from api_server.render import Renderer
from api_server.text import Answer, join
from protocol.messages import Delta, FinishReason, FirstToken
from tests.api_server.vocabularies import byte_level, deltas, job

TOKENIZER = byte_level()
END = TOKENIZER.token_to_id("<|end|>")
PROMPT = list(range(5, 45))
CACHED = 16
THOUGHT = "<think>\nTwo and two.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'
OTHER_CALL = '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
FULL = f"{THOUGHT}Let me see. 漢字 🎉\n{CALL}\n{OTHER_CALL} Done."


def reader() -> Reader:
    return ReasoningReader(HermesReader(), opened=False)


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def work(rid: str, **options: Any) -> Job:
    """A job whose answer may have anything in it."""
    made = job(TOKENIZER, [PROMPT], **{"reader": reader, **options})
    return replace(made, submission=replace(made.submission, rid=rid))


def answer(
    text: str, cuts: Sequence[int] = range(500), finish: FinishReason = FinishReason.STOP, **more: Any
) -> list[Delta]:
    """The text token by token, or cut as told; the token that ends it is not shown."""
    tokens = [*encode(text), *([END] if finish is FinishReason.STOP else [])]
    parts = deltas(tokens, cuts, finish, **more)
    parts[0].first = FirstToken(0.0, 0.0, CACHED)
    return parts


def streamed(renderer: Renderer, made: Job, parts: Sequence[Delta]) -> list[Any]:
    """The events, decoded. What is not exactly an event with the name of its type fails here."""
    told = Answer(made)
    data = renderer.head()
    for part in parts:
        if (piece := told.feed(0, part)) is not None:
            data += renderer.chunk(piece, None)
    assert told.finished
    return events(data + renderer.tail(told.usage))


def events(data: bytes) -> list[Any]:
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    found = []
    for block in blocks:
        name, line = block.split("\n")
        found.append(json.loads(line.removeprefix("data: ")))
        assert name == "event: " + found[-1]["type"]
    return found


def whole(renderer: Renderer, made: Job, parts: Sequence[Delta]) -> Any:
    told = Answer(made)
    pieces = [piece for part in parts if (piece := told.feed(0, part)) is not None]
    return json.loads(renderer.whole([join(pieces)], told.usage))
