import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.parsing.pythonic import MAX_KEYWORD, PythonicReader
from tests.api_server.parsing.reading import Reading, cut, held, places, read, read_both_ways, steps, texts

NAMES = ("get_weather", "get_time", "get")
FRAGMENTS = (
    *("[get_weather(", 'city="Paris"', "days=3", "get_time()", "[get(a=1)", "**{'b': 2}", "other(", "x="),
    *("<|python_start|>", "<|python_end|>", "<|python_tag|>", "True", "'it\\'s'", '"""', "-1.5"),
    *"[](),= \n'\"{}:*<",
)


def reader(max_calls: int | None = None) -> PythonicReader:
    return PythonicReader(NAMES, max_calls)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[get_weather(city="Paris", days=-3)]', [("get_weather", '{"city": "Paris", "days": -3}')]),
        ("[get_time()]", [("get_time", "{}")]),
        ("[get_time(), get(a=None)]\n", [("get_time", "{}"), ("get", '{"a": null}')]),
        ("<|python_start|>[get_time()]<|python_end|>", [("get_time", "{}")]),
        (" <|python_tag|> [ get_time( ) , ]", [("get_time", "{}")]),
        ("[get(a=[1, (2, 'b')], b={'c': True},)]", [("get", '{"a": [1, [2, "b"]], "b": {"c": true}}')]),
        ('[get(a = \'(,)]\\\'\', b="""x, "y" )""")]', [("get", '{"a": "(,)]\'", "b": "x, \\"y\\" )"}')]),
        ("[get(a=1, **{'b-c': 2}, **{})]", [("get", '{"a": 1, "b-c": 2}')]),
        ("[get(**{})]", [("get", "{}")]),
        (r"[get(a='\ud83d\ude00')]", [("get", r'{"a": "\ud83d\ude00"}')]),
        ("[get(a=1),", [("get", '{"a": 1}')]),
    ],
)
def test_calls(text: str, calls: list[tuple[str, str]]) -> None:
    assert read_both_ways(reader, text) == Reading("", "", calls)


@pytest.mark.parametrize(
    "text",
    [
        "It rains.",
        "[1] As they say",
        "[]",
        "[get_weather]",
        "[other(a=1)]",
        "[get(1)]",
        "[get(a)]",
        "[get(a=b)]",
        "[get(a=f(1))]",
        "[get(**[1])]",
        "[get(*a)]",
        "[get(a=1",  # not known to be all of the argument
        "[get(a='",
        "[get(a=])]",
        "[get_wea",
        "<|python_start|>",
        "<|python_start|>text<|python_end|>",
        "I call [get_time()]",
        " ",
        f"[get({'k' * MAX_KEYWORD}=1)]",
    ],
)
def test_a_text_that_is_no_list_of_calls_is_content(text: str) -> None:
    assert read_both_ways(reader, text) == Reading(text, "", [])


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ("[get(a=1)] Done.", " Done.", '{"a": 1}'),
        ("[get(a=1), other()]", ", other()]", '{"a": 1}'),
        ("[get(a=1); get()]", "; get()]", '{"a": 1}'),
        ("[get(a=1, b=oh), get()]", ", b=oh), get()]", '{"a": 1'),
        ("[get(a=1, b='tw", ", b='tw", '{"a": 1'),
    ],
)
def test_what_was_told_stays_and_the_rest_is_content(text: str, content: str, arguments: str) -> None:
    assert read_both_ways(reader, text) == Reading(content, "", [("get", arguments)])


def test_arguments_are_told_one_by_one() -> None:
    said = steps(reader(), ["[get_we", "ather(city=", '"Pa', 'ris"', ", ", "days=3", ")", "]"])
    assert [[call.arguments for call in one.calls] for one in said] == [
        *([], [], [], [], ['{"city": "Paris"'], [], [', "days": 3}'], [], [])
    ]


def test_a_text_that_does_not_fit_is_told_at_once() -> None:
    assert [one.content for one in steps(reader(), ["[ge", "ne", "rally]"])] == ["", "[gene", "rally]", ""]


def test_calls_above_the_limit_are_left_out() -> None:
    text = "[get(a=1), get(a=2), get_time()]"
    assert read_both_ways(lambda: reader(1), text) == Reading("", "", [("get", '{"a": 1}')])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
calls = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.sampled_from("abcd\u00e9\U00010400"), values, max_size=3))


@given(st.lists(calls, min_size=1, max_size=3), places)
def test_any_calls_in_any_split_arrive(given_calls: list[tuple[str, dict[str, object]]], at: list[int]) -> None:
    spelt = [f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in given_calls]
    reading = read(reader(), *cut(f"[{', '.join(spelt)}]", at))
    assert not reading.content
    assert [(name, json.loads(arguments)) for name, arguments in reading.calls] == given_calls


@given(texts(*FRAGMENTS), places)
def test_any_split_of_any_text_says_the_same(text: str, at: list[int]) -> None:
    whole = read(reader(), text)
    assert read(reader(), *cut(text, at)) == whole
    if not whole.calls:
        assert whole.content == text
    for _, arguments in whole.calls[:-1]:  # the last one may be left open
        assert isinstance(json.loads(arguments), dict)


def test_a_long_argument_is_kept_in_pieces_and_arguments_that_were_told_are_not_kept() -> None:
    pythonic = reader()
    pythonic.feed("[get(a='")
    for _ in range(2000):
        pythonic.feed("some text, (")
    assert max(map(len, held(pythonic))) < 100  # joining what is kept again and again would be quadratic
    assert len(pythonic.feed("', ").calls[0].arguments) > 24_000
    for i in range(2000):
        assert pythonic.feed(f"b{i}={i}, ").calls
        assert sum(map(len, held(pythonic))) < 100
