import pytest
from hypothesis import given

from api_server.parsing.llama import LlamaReader
from tests.api_server.parsing.reading import Reading, cut, held, places, read, read_both_ways, steps, texts

NAMES = ("get_weather", "get_time")
PARIS = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
TIME = '{"name": "get_time", "parameters": {}}'
CALLS = [("get_weather", '{"city": "Paris"}'), ("get_time", "{}")]
FRAGMENTS = (
    *("<|python_tag|>", PARIS, TIME, '{"name": "other", "parameters": {}}', '{"name": "get_time"'),
    *('"parameters": ', '"arguments"', '{"type": "function", ', "null"),
    *'{}[],:;"\\ \n<',
)


def reader(max_calls: int | None = None) -> LlamaReader:
    return LlamaReader(NAMES, max_calls)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (PARIS, CALLS[:1]),
        (f"<|python_tag|>{PARIS}", CALLS[:1]),
        (f" \n<|python_tag|> {PARIS}\n", CALLS[:1]),
        (f"{PARIS}; {TIME}", CALLS),
        (f"{PARIS}\n{TIME}", CALLS),
        (f"<|python_tag|>{PARIS};<|python_tag|>{TIME}", CALLS),
        (f"[{PARIS}, {TIME}]\n", CALLS),
        (f"[{PARIS}", CALLS[:1]),
        ('{"type": "function", "name": "get_time", "parameters": {}}', CALLS[1:]),
        ('{"parameters": {}, "name": "get_time"}', CALLS[1:]),
        ('{"name": "get_time", "arguments": {}}', CALLS[1:]),
        ('{"name": "get_time"}', CALLS[1:]),
        ('{"name": "get_time", "parameters": {"zone": "CET', [("get_time", '{"zone": "CET')]),
    ],
)
def test_calls(text: str, calls: list[tuple[str, str]]) -> None:
    assert read_both_ways(reader, text) == Reading("", "", calls)


@pytest.mark.parametrize(
    "text",
    [
        "It rains in Paris.",
        f"I call {PARIS}",
        '{"answer": 42, "name": "get_time"}',
        '{"name": "Ada", "parameters": {}}',
        '{"name": "get_time", "parameters": [1]}',
        "[1, 2, 3]",
        "[]",
        "; " + TIME,
        "<|python_tag|>print(1)",
        '<|python_tag|>brave_search.call(query="rain")',
        "<|python_",
        " ",
        '{"name": "get_ti',
    ],
)
def test_a_text_that_begins_otherwise_is_content(text: str) -> None:
    assert read_both_ways(reader, text) == Reading(text, "", [])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"{PARIS} That is all.", " That is all."),
        (f'{PARIS}; {{"name": "other", "parameters": {{}}}}', '; {"name": "other", "parameters": {}}'),
        (f"[{PARIS}] and {TIME}", " and " + TIME),
        (f"{PARIS}}}", "}"),
        (f"{PARIS}[{TIME}]", f"[{TIME}]"),
    ],
)
def test_from_the_first_thing_that_is_no_call_all_is_content(text: str, content: str) -> None:
    assert read_both_ways(reader, text) == Reading(content, "", CALLS[:1])


def test_a_call_is_told_as_it_comes_and_an_answer_as_soon_as_it_is_one() -> None:
    said = steps(reader(), ['{"name": "get_time", ', '"parameters": {"zo', 'ne": "CET"', "}}"])
    assert [[call.arguments for call in one.calls] for one in said] == [[], ['{"zo'], ['ne": "CET"'], ["}"], []]
    said = steps(reader(), ["{", '"ans', 'wer"', ": 1}"])
    assert [one.content for one in said] == ["", "", '{"answer"', ": 1}", ""]


def test_calls_above_the_limit_are_left_out() -> None:
    assert read_both_ways(lambda: reader(1), f"{PARIS}; {TIME}") == Reading("", "", CALLS[:1])


@given(texts(*FRAGMENTS), places)
def test_any_split_of_any_text_says_the_same(text: str, at: list[int]) -> None:
    whole = read(reader(), text)
    assert read(reader(), *cut(text, at)) == whole
    if not whole.calls:
        assert whole.content == text


def test_a_long_argument_is_neither_kept_nor_read_twice() -> None:
    llama = reader()
    llama.feed('{"name": "get_time", "parameters": {"x": ["')
    for _ in range(2000):
        assert llama.feed('text\\"]').calls[0].arguments == 'text\\"]'
        assert sum(map(len, held(llama._raw) + held(llama._call))) < 100
