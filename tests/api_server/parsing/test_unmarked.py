import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.parsing import Reader
from api_server.parsing.content import ContentReader
from api_server.parsing.hermes import HermesReader
from api_server.parsing.reasoning import ReasoningReader
from api_server.parsing.unmarked import Unmarked
from tests.api_server.parsing.reading import Reading, read, read_both_ways

TAG = "<|python_tag|>"


def content() -> Reader:
    return Unmarked(ContentReader(), {TAG, "<think>"})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Hello", "Hello"),
        (TAG, ""),
        (f"a{TAG}b{TAG}", "ab"),
        (f"{TAG}{TAG}<think>", ""),
        ("a < b <", "a < b <"),
        ("<|python", "<|python"),
        ("<|python_<|python_tag|>", "<|python_"),
        ("<|eot_id|>", "<|eot_id|>"),
    ],
)
def test_marks_are_taken_out_and_nothing_else(text: str, shown: str) -> None:
    assert read_both_ways(content, text) == Reading(shown, "", [])


def test_reasoning_has_none_either_and_calls_are_left_alone() -> None:
    def make() -> Reader:
        return Unmarked(ReasoningReader(HermesReader(), opened=True), {TAG})

    call = '<tool_call>{"name": "f", "arguments": {"a": "<|python_tag|>"}}</tool_call>'
    read_ = read_both_ways(make, f"one{TAG} two</think>{TAG}three{call}")
    assert read_ == Reading("three", "one two", [("f", '{"a": "<|python_tag|>"}')])


def test_text_is_told_as_soon_as_it_can_be_no_mark() -> None:
    reader = content()
    assert [reader.feed(piece).content for piece in ("a <", "|py", "thon!", TAG, " b")] == [
        "a ",
        "",
        "<|python!",
        "",
        " b",
    ]


@given(st.lists(st.sampled_from([TAG, "<think>", "<", "|", "a", "<|python", "_tag|>", "漢"])))
def test_however_it_is_cut(pieces: list[str]) -> None:
    assert read(content(), *pieces).content == read(content(), *"".join(pieces)).content
