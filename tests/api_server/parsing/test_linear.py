"""Work grows with the text and not faster, however it is cut: in operations, for no clock is asked."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType

import pytest

from api_server.parsing import Reader
from api_server.parsing.content import ContentReader
from api_server.parsing.hermes import HermesReader
from api_server.parsing.llama import LlamaReader
from api_server.parsing.pythonic import PythonicReader
from api_server.parsing.reasoning import ReasoningReader
from tests.api_server.parsing.reading import join, steps


def llama() -> Reader:
    return LlamaReader(["f"])


def pythonic() -> Reader:
    return PythonicReader(["f"])


def thoughts() -> Reader:
    return ReasoningReader(ContentReader(), opened=True)


def operations(reader: Reader, pieces: Sequence[str]) -> int:
    """Calls that the reading makes, of Python's functions and of its built-in ones."""
    count = 0

    def tally(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        steps(reader, pieces)
    finally:
        sys.setprofile(None)
    return count


HOSTILE: list[tuple[Callable[[], Reader], str, str]] = [
    (HermesReader, "", "<tool_call>"),
    (HermesReader, "", "<tool_call>{"),
    (HermesReader, "", "<too"),
    (HermesReader, "", " "),
    (HermesReader, "", '<tool_call>{"name":"f"}</tool_call>'),
    (HermesReader, "<tool_call>{", '"a":1,'),
    (HermesReader, '<tool_call>{"name":"f","arguments":{"a":[', "[],"),
    (HermesReader, '<tool_call>{"name":"f","arguments":"', r"\ud83d"),
    (llama, "", " "),
    (llama, "", '{"name":"f"};'),
    (llama, '{"parameters":{"a":"', r"\""),
    (pythonic, "[f(", "a=1,"),
    (pythonic, "[", "f(),"),
    (pythonic, "[f(a=", "'"),
    (pythonic, "[f(a=[", "[1],"),
    (pythonic, "[f(a=", "'a' "),
    (thoughts, "", "\n"),
    (thoughts, "", "</think"),
    *((make, "", again) for make in (HermesReader, llama, pythonic, thoughts) for again in '{["\\'),
    *(
        (make, begin + quote, again)
        for make, begin in (
            (HermesReader, '<tool_call>{"name":"f","arguments":'),
            (llama, '{"name":"f","parameters":'),
            (pythonic, "[f(a="),
        )
        for quote in ("", '"', '{"a":"')
        for again in '{["\\'
    ),
]


@pytest.mark.parametrize(("make", "begin", "again"), HOSTILE)
def test_twice_the_text_is_twice_the_work(make: Callable[[], Reader], begin: str, again: str) -> None:
    once, twice = begin + again * 100, begin + again * 200
    assert operations(make(), [twice]) <= 2 * operations(make(), [once]) + 20
    assert operations(make(), twice) <= 2 * operations(make(), once) + 20


@pytest.mark.parametrize(
    ("make", "begin", "end", "members"),
    [
        (HermesReader, '<tool_call>{"name": "f", "arguments": ', "}</tool_call>", '{"a": "%s"}'),
        (HermesReader, '<tool_call>{"arguments": ', ', "name": "f"}</tool_call>', '{"a": "%s"}'),
        (llama, '{"name": "f", "parameters": ', "}", '{"a": "%s"}'),
        (pythonic, "[f(a=", ")]", '"%s"'),
    ],
)
def test_an_argument_of_a_megabyte(make: Callable[[], Reader], begin: str, end: str, members: str) -> None:
    long = r"all \"work\" & no play, { " * 40_000
    text = begin + members % long + end
    reading = join(steps(make(), [text[at : at + 64] for at in range(0, len(text), 64)]))
    assert reading.content == ""
    assert reading.calls == [("f", '{"a": "' + long + '"}')]
