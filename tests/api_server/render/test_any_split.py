"""Any split of a token stream gives the same text, stop cut and calls: from tokens, as the engine groups them, through
detokenisation, stop strings and each dialect's own reader to what a client joins from the chunks. It is what the whole
text says, read in one piece."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from api_server.detokenize import Vocabulary
from api_server.parsing import Reader
from api_server.parsing.select import reader, tool_dialect
from api_server.parsing.unmarked import Unmarked
from api_server.render.chat import ChatRenderer
from protocol.messages import FinishReason
from tests.api_server.parsing.reading import Reading, anything, read, texts
from tests.api_server.render.test_chat import joined
from tests.api_server.test_render import one, streamed, whole
from tests.api_server.vocabularies import byte_level, job

MARKS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>")
PLAIN, MARKED = byte_level(), byte_level()  # in the first, marks are text like any other
MARKED.add_special_tokens(list(MARKS))
END = PLAIN.token_to_id("<|end|>")
NAMES = ("f", "get_time")
STOPS = ("}}", "</tool_call>", "Paris", "\U0001f600", '"a": 1', "city=", "漢", "\ufffd", "]")
THOUGHT = "<think>\nWhere? 漢\n</think>\n\n"
STRINGS = (r'"\ud83d\ude00 \"}\\"', '"Paris, 漢\U0001f600"', '"' + "{[" * 20 + '"', "'it\\'s'", "\u0301\x00\U0010ffff")
FRAGMENTS = {
    "hermes": (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": {"c": [{}, "}"]}}}\n</tool_call>',
        '<tool_call>{"arguments": "{\\"city\\": \\"Paris\\"}", "name": "get_time"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": ',
        "<tool_call>",
        "</tool_call>",
    ),
    "llama3_json": (
        '{"name": "f", "parameters": {"a": 1, "b": {"c": [{}, "}"]}}}',
        '<|python_tag|>{"type": "function", "name": "get_time", "parameters": {"city": "Paris"}}',
        '{"name": "f", "parameters": {"x": ',
        "<|python_tag|>",
        "; ",
    ),
    "pythonic": (
        "[f(a=1, b={'c': [{}, '}']}), get_time()]",
        '[get_time(city="Paris", days=(1, -2.5), ok=True)',
        "[f(x=",
        "<|python_tag|>",
        ", ",
    ),
}


def outputs(dialect: str, tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Tokens of texts with calls, broken ones and anything else in them; and among these any byte, so that characters
    break off."""
    said = texts(*FRAGMENTS[dialect], THOUGHT, *STRINGS, '"', "}", "]", ")", "\\", "\n")
    spelt = st.tuples(st.sampled_from([THOUGHT, "", "", *FRAGMENTS[dialect][:3]]), said).map("".join)
    stray = st.lists(st.tuples(st.integers(0, 300), st.integers(5, 260)), max_size=2)
    return st.tuples(spelt, stray).map(lambda made: with_stray(encode(made[0], tokenizer), made[1])).filter(bool)


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def with_stray(tokens: list[int], stray: list[tuple[int, int]]) -> list[int]:
    for place, token in stray:
        at = place % (len(tokens) + 1)
        tokens = [*tokens[:at], token, *tokens[at:]]
    return tokens


def reader_of(dialect: str, tokenizer: Tokenizer) -> Reader:
    made = reader(tool_dialect(dialect, None), NAMES, opened=False)
    return Unmarked(made, MARKS) if tokenizer is MARKED else made


def expected(
    dialect: str, tokenizer: Tokenizer, tokens: list[int], finish: FinishReason, stop: tuple[str, ...], include: bool
) -> tuple[Reading, str, str | None]:
    """All that the text says, and why it ended: by the rules, on the whole of it."""
    text = b"".join(map(Vocabulary(tokenizer).spell, tokens)).decode(errors="replace")
    found = min(((text.index(one) + len(one), text.index(one), one) for one in stop if one in text), default=None)
    if found is not None:
        finish, text = FinishReason.STOP, text[: found[0] if include else found[1]]
    said = read(reader_of(dialect, tokenizer), text)
    name = "tool_calls" if said.calls and finish is FinishReason.STOP else finish.name.lower()
    return said, name, found and found[2]


def told(
    dialect: str, tokenizer: Tokenizer, tokens: list[int], cuts: Sequence[int], finish: FinishReason, **options: Any
) -> tuple[Reading, str, str | None]:
    """What a client joins of the stream. The whole answer says the same."""
    visible = frozenset(map(MARKED.token_to_id, MARKS)) if tokenizer is MARKED else frozenset()
    made = job(tokenizer, reader=lambda: reader_of(dialect, tokenizer), visible=visible, **options)
    parts = one([*tokens, *([END] if finish is FinishReason.STOP else [])], cuts, finish)
    events = streamed(ChatRenderer, made, parts)
    [at_once] = whole(ChatRenderer, made, parts)["choices"]
    message, last = joined(events), events[-1]["choices"][0]
    said = reading_of(message)
    assert reading_of(at_once["message"]) == said
    assert (at_once["finish_reason"], at_once["stop_reason"]) == (last["finish_reason"], last["stop_reason"])
    return said, last["finish_reason"], last["stop_reason"]


def reading_of(message: dict[str, Any]) -> Reading:
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return Reading(message["content"] or "", message.get("reasoning_content", ""), calls)


@pytest.mark.parametrize("tokenizer", [PLAIN, MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize("dialect", FRAGMENTS)
@given(st.data())
def test_any_split_gives_the_same_text_stop_cut_and_calls(
    dialect: str, tokenizer: Tokenizer, data: st.DataObject
) -> None:
    tokens = data.draw(outputs(dialect, tokenizer))
    cuts = data.draw(st.just(range(len(tokens))) | st.lists(st.integers(0, len(tokens)), max_size=20))
    finish = data.draw(st.sampled_from(FinishReason))
    stop = tuple(data.draw(st.lists(st.sampled_from(STOPS), max_size=2, unique=True)))
    include = data.draw(st.booleans())
    split = told(dialect, tokenizer, tokens, cuts, finish, stop=stop, include_stop=include)
    assert split == expected(dialect, tokenizer, tokens, finish, stop, include)


SPELLINGS = {  # what stands before and behind the arguments
    "hermes": ('<tool_call>\n{"name": "f", "arguments": ', "}\n</tool_call>"),
    "llama3_json": ('{"name": "f", "parameters": ', "}"),
    "pythonic": ("[f(**", ")]"),
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | anything,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("dialect", SPELLINGS)
@given(st.dictionaries(anything, values, max_size=3), st.booleans(), st.lists(st.integers(0, 400), max_size=12))
def test_arguments_of_every_plane_arrive_in_any_split(
    dialect: str, arguments: dict[str, Any], ascii_only: bool, cuts: list[int]
) -> None:
    raw = json.dumps(arguments, ensure_ascii=ascii_only)
    tokens = encode(raw.join(SPELLINGS[dialect]), MARKED)
    said, finish, _ = told(dialect, MARKED, tokens, cuts, FinishReason.STOP)
    [(name, made)] = said.calls
    assert (name, said.content, finish) == ("f", "", "tool_calls")
    assert json.loads(made) == arguments
    assert made == raw or dialect == "pythonic"
