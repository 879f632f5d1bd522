import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.parsing.json_scan import MAX_DEPTH, Unescape, ValueScan
from tests.api_server.parsing.reading import cut, places

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def scan(pieces: list[str]) -> tuple[int, bool, bool]:
    """How much belongs to the value, whether it is done, whether it is broken."""
    value, read = ValueScan(), 0
    for piece in pieces:
        behind = value.feed(piece, 0, len(piece))
        read += behind
        if behind < len(piece):
            break
    return read, value.done, value.broken


@given(values, st.booleans(), st.sampled_from([",", "}", "]", " ", "\n"]), st.text(max_size=5), places)
def test_a_value_ends_where_it_ends(value: object, ascii_only: bool, after: str, rest: str, at: list[int]) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert scan(cut(text + after + rest, at)) == (len(text), True, False)


@pytest.mark.parametrize("text", ['"a\\"', '{"a": "}', "[[]", "12", '{"a": "\\'])
def test_a_value_that_goes_on_is_neither_done_nor_broken(text: str) -> None:
    assert scan([text]) == scan(list(text)) == (len(text), False, False)


@pytest.mark.parametrize(("text", "good"), [("[}", 1), ('{"a": [1}]', 8), (",", 0), ("}", 0)])
def test_a_bracket_that_does_not_fit_breaks_it(text: str, good: int) -> None:
    assert scan([text]) == scan(list(text)) == (good, False, True)


def test_depth_is_bounded() -> None:
    assert scan(["[" * MAX_DEPTH + "]" * MAX_DEPTH]) == (2 * MAX_DEPTH, True, False)
    assert scan(["[" * (MAX_DEPTH + 1)]) == (MAX_DEPTH, False, True)


def test_nothing_behind_the_end_is_read() -> None:
    value = ValueScan()
    assert value.feed('x{"a": 1}, "b"', 1, 14) == 9
    assert value.done
    assert value.feed("more", 0, 4) == 0


def unescape(pieces: list[str]) -> str:
    string = Unescape()
    return "".join(string.feed(piece) for piece in pieces) + string.feed("", last=True)


@given(st.text(max_size=20), st.booleans(), places)
def test_a_string_says_what_json_says(text: str, ascii_only: bool, at: list[int]) -> None:
    raw = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
    assert unescape(cut(raw, at)) == text


def test_the_halves_of_a_character_find_each_other() -> None:
    assert unescape(list("\\ud83d\\ude00!")) == "\U0001f600!"


@pytest.mark.parametrize("raw", ["\\ud83d", "\\ude00x", "\\ud83d\\n", "\\ud83d\\ud83d\\ude00", "\\ud83d\\u0041"])
def test_half_a_character_remains_an_escape(raw: str) -> None:
    said = unescape(list(raw))
    assert said == unescape([raw])
    assert said.startswith(raw[:6])
    said.encode()


@pytest.mark.parametrize("raw", ["\\q", "\\uzzzz", "\\u12", "\\"])
def test_what_is_no_escape_is_left_as_it_is(raw: str) -> None:
    assert unescape([raw]) == unescape(list(raw)) == raw


@given(st.text(alphabet='\\ud83e0zn"', max_size=30), places)
def test_any_split_of_any_escapes_says_the_same(raw: str, at: list[int]) -> None:
    assert unescape(cut(raw, at)) == unescape([raw])


@given(st.text(alphabet="\\ud83e0zn", max_size=30))
def test_no_more_than_a_pair_of_escapes_is_held_back(raw: str) -> None:
    string = Unescape()
    for char in raw:
        string.feed(char)
        assert len(string._held) < len("\\ud83d\\ude00")
