import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.parsing.call_object import MAX_WORD
from api_server.parsing.hermes import HermesReader
from tests.api_server.parsing.reading import Reading, cut, held, join, places, read, read_both_ways, steps, texts

WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
FRAGMENTS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_call>\n" + WEATHER + "\n</tool_call>",
    '<tool_call>{"name": "f", "arguments": ',
    '{"name"',
    '"name": "f"',
    '"arguments"',
    '"parameters"',
    '"\\ud83d\\ude00"',
    '"{\\"a\\": \\"\\\\n\\ud83d\\ude00\\"}"',
    "null",
    *'{}[],:"\\ \n<',
)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        # Qwen 2.5 and 3
        (f"<tool_call>\n{WEATHER}\n</tool_call>", "", [("get_weather", '{"city": "Paris", "days": 3}')]),
        (
            'I look.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n'
            '<tool_call>\n{"name": "b", "arguments": {"x": [1, {"y": "}"}]}}\n</tool_call>',
            "I look.\n",
            [("a", "{}"), ("b", '{"x": [1, {"y": "}"}]}')],
        ),
        # Hermes 2 and 3: the arguments first, a space behind
        ('\n<tool_call>\n{ "arguments": {"x":1}, "name": "a"}\n</tool_call> ', "", [("a", '{"x":1}')]),
        ('<tool_call>{"name": "a", "parameters": {"x": 1}}</tool_call>', "", [("a", '{"x": 1}')]),
        # Arguments in a string, with an escape for a character beyond the basic plane
        (
            r'<tool_call>{"name": "a", "arguments": "{\"x\": \"\ud83d\ude00\\n\"}"}</tool_call>',
            "",
            [("a", '{"x": "\U0001f600\\n"}')],
        ),
        ('<tool_call>{"arguments": "", "name": "a"}</tool_call>', "", [("a", "{}")]),
        ('<tool_call>{"name": "a"}</tool_call>', "", [("a", "{}")]),
        ('<tool_call>{"name": "a", "arguments": null}</tool_call>', "", [("a", "{}")]),
        ('<tool_call>{"id": [1, "}"], "name": "a", "arguments": {}, "n": 1.5}</tool_call>', "", [("a", "{}")]),
        (r'<tool_call>{"n\u0061me": "\u0061", "arguments": {}}</tool_call>', "", [("a", "{}")]),
        # The first of two counts
        ('<tool_call>{"name": "a", "arguments": {}, "name": "b", "parameters": {"x": 1}}', "", [("a", "{}")]),
        # Tags in an argument are its text
        ('<tool_call>{"name": "a", "arguments": {"x": "</tool_call>"}}', "", [("a", '{"x": "</tool_call>"}')]),
        # Cut off in the closing tag, and where a tag may begin behind it
        ('<tool_call>{"name": "a"}\n</tool_c', "", [("a", "{}")]),
        ('<tool_call>{"name": "a"}</tool_call>\n<tool', "\n<tool", [("a", "{}")]),
        # No closing tag, and text behind
        ('<tool_call>{"name": "a"}\n<tool_call>{"name": "b"}', "", [("a", "{}"), ("b", "{}")]),
        ('<tool_call>{"name": "a"}</tool_call>\nDone.', "\nDone.", [("a", "{}")]),
        ('\n\n<tool_call>{"name": "a"}</tool_call>Done.', "Done.", [("a", "{}")]),
        # A bracket too many is content, the tag behind it is not
        ('<tool_call>{"name": "a"}}</tool_call>\n', "}\n", [("a", "{}")]),
    ],
)
def test_calls(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read_both_ways(HermesReader, text) == Reading(content, "", calls)


@pytest.mark.parametrize(
    "text",
    [
        "Just text. 1 < 2, <tool, <tool_cal",
        "\n\n",
        "<tool_call></tool_call>",
        "<tool_call>call it</tool_call>",
        '<tool_call>{"name": "not a name", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "a", "arguments": 1}</tool_call>',
        '<tool_call>{"arguments": {"x": 1}}</tool_call>',
        "<tool_call>{'name': 'a', 'arguments': {}}</tool_call>",
        '<tool_call>\n{"name": "a", "argum',  # the output ends before there are arguments
        '<tool_call>\n{"arguments": {"x": 1}, "na',
        '<tool_call>{"name": "\\x", "arguments": {}}',
        '<tool_call>{"' + "k" * 10_000 + '": 1}',
        "</tool_call>",
    ],
)
def test_what_never_becomes_a_call_is_content_as_it_was_written(text: str) -> None:
    assert read_both_ways(HermesReader, text) == Reading(text, "", [])


def test_a_call_after_one_that_was_none() -> None:
    text = '<tool_call>{"a" <tool_call>{"name": "a"}</tool_call>'
    assert read_both_ways(HermesReader, text) == Reading('<tool_call>{"a" ', "", [("a", "{}")])


def test_a_word_that_never_ends_is_given_up_at_its_limit() -> None:
    text = '<tool_call>{"' + "k" * MAX_WORD
    assert read_both_ways(HermesReader, text + '<tool_call>{"name": "a"}') == Reading(text, "", [("a", "{}")])


def test_what_was_told_stays_and_what_follows_the_break_is_content() -> None:
    text = '<tool_call>{"name": "a", "arguments": {"x": [1}, oh}</tool_call>!'
    assert read_both_ways(HermesReader, text) == Reading("}, oh}!", "", [("a", '{"x": [1')])


def test_an_output_that_ends_in_the_arguments_has_told_all_of_them() -> None:
    text = '<tool_call>{"name": "a", "arguments": {"x": "y'
    assert read_both_ways(HermesReader, text) == Reading("", "", [("a", '{"x": "y')])


def test_a_call_is_told_as_it_comes() -> None:
    pieces = ["Hi <too", 'l_call>\n{"name": "a', '", "arguments": ', '{"x"', ': "y', '\\"z"', "}}", "\n</tool_call>"]
    said = steps(HermesReader(), pieces)
    assert [one.content for one in said] == ["Hi "] + [""] * 8
    assert [[call.arguments for call in one.calls] for one in said] == [
        *([], [], [], ['{"x"'], [': "y'], ['\\"z"'], ["}"], [], [])
    ]


def test_arguments_that_come_first_are_told_with_the_name() -> None:
    pieces = ['<tool_call>{"arguments": {"x": 1}, ', '"name": "a"', "}"]
    said = steps(HermesReader(), pieces)
    assert [len(one.calls) for one in said] == [0, 1, 0, 0]
    assert join(said).calls == [("a", '{"x": 1}')]


def test_calls_above_the_limit_are_left_out() -> None:
    text = f"A<tool_call>{WEATHER}</tool_call>B<tool_call>{WEATHER}</tool_call>C<tool_call>{{"
    reading = read_both_ways(lambda: HermesReader(max_calls=1), text)
    assert reading == Reading("ABC<tool_call>{", "", [("get_weather", '{"city": "Paris", "days": 3}')])


arguments = st.dictionaries(
    st.text(max_size=5),
    st.text(max_size=10) | st.integers() | st.lists(st.none() | st.text(max_size=4), max_size=3),
    max_size=4,
)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True)


@given(st.lists(st.tuples(names, arguments, st.booleans(), st.booleans(), st.booleans()), max_size=3), places)
def test_any_call_in_any_split_arrives_letter_by_letter(
    given_calls: list[tuple[str, dict[str, object], bool, bool, bool]], at: list[int]
) -> None:
    text, expected = "", []
    for name, value, ascii_only, first, wrapped in given_calls:
        raw = json.dumps(value, ensure_ascii=ascii_only)
        members = [f'"name": "{name}"', f'"arguments": {json.dumps(raw, ensure_ascii=ascii_only) if wrapped else raw}']
        text += "<tool_call>\n{" + ", ".join(reversed(members) if first else members) + "}\n</tool_call>\n"
        expected.append((name, raw))
    assert read(HermesReader(), *cut(text, at)) == Reading("", "", expected)


@given(texts(*FRAGMENTS), places, st.sampled_from([None, 1]))
def test_any_split_of_any_text_says_the_same(text: str, at: list[int], limit: int | None) -> None:
    assert read(HermesReader(limit), *cut(text, at)) == read(HermesReader(limit), text)


@given(texts("<tool_call>", "</tool_call>", "<tool", " ", "\n", "{", "name"))
def test_text_without_calls_is_conserved(text: str) -> None:
    assert read(HermesReader(), *text) == Reading(text, "", [])


@given(texts("<tool_cal", "</tool_call>", "text", "<"), st.just("."))
def test_outside_a_call_only_the_beginning_of_a_tag_is_held_back(text: str, first: str) -> None:
    reader, fed, told = HermesReader(), "", ""
    for char in first + text:
        fed += char
        told += reader.feed(char).content
        assert fed.startswith(told)
        assert "<tool_call>".startswith(fed[len(told) :])


def test_a_long_argument_is_neither_kept_nor_read_twice() -> None:
    reader = HermesReader()
    reader.feed('<tool_call>{"name": "a", "arguments": {"x": "')
    for _ in range(2000):
        piece = 'some text \\" and {'
        assert "".join(call.arguments for call in reader.feed(piece).calls) == piece
        assert sum(map(len, held(reader))) < 100


def test_a_long_argument_that_waits_for_its_name_is_kept_in_pieces() -> None:
    reader = HermesReader()
    reader.feed('<tool_call>{"arguments": {"x": "')
    for _ in range(2000):
        assert not reader.feed("some text").calls
        assert reader._call is not None
    assert max(map(len, held(reader))) < 100  # joining what is kept again and again would be quadratic
    assert len(reader.feed('"}, "name": "a"}').calls[0].arguments) > 18_000
