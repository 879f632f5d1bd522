import ast
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.parsing.json_scan import MAX_DEPTH
from api_server.parsing.python_literal import LiteralScan, to_json
from tests.api_server.parsing.reading import cut, places

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def scan(pieces: list[str]) -> tuple[int, bool, bool]:
    """How much belongs to the value, whether it is done, whether it is broken."""
    value, read = LiteralScan(), 0
    for piece in pieces:
        behind = value.feed(piece, 0)
        read += behind
        if behind < len(piece):
            break
    return read, value.done, value.broken


@given(values, st.sampled_from([",", ")"]), st.text(max_size=5), places)
def test_pythons_own_spelling_of_any_value(value: object, after: str, rest: str, at: list[int]) -> None:
    text = repr(value)
    assert scan(cut(text + after + rest, at)) == (len(text), True, False)
    assert json.loads(to_json(text)) == value


@given(values, st.booleans())
def test_json_is_understood_as_well(value: object, ascii_only: bool) -> None:
    assert json.loads(to_json(json.dumps(value, ensure_ascii=ascii_only))) == value


quoted = st.text(alphabet="ab'\"\\nx0123{(,\n\U0001f600", max_size=10)


@given(quoted, st.sampled_from(["'", '"', "'''", '"""']), st.sampled_from(["", "r", "u"]), places)
def test_strings_are_what_python_takes_them_for(body: str, quote: str, prefix: str, at: list[int]) -> None:
    text = prefix + quote + body.replace("\\", "\\\\") + quote
    try:
        expected = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return
    assert scan(cut(text + ")", at)) == (len(text), True, False)
    assert json.loads(to_json(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1", "-1"),
        ("+1.50", "1.50"),
        ("-.5", "-0.5"),
        ("5.", "5.0"),
        ("05.5", "5.5"),
        ("1e-7", "1e-7"),
        ("1.e5", "1.0e5"),
        ("0", "0"),
        ("9" * 4000, "9" * 4000),
        ("True", "true"),
        ("None", "null"),
        ("(1, 'a')", '[1, "a"]'),
        ("(1,)", "[1]"),
        ("(1)", "1"),
        ("()", "[]"),
        ("[1, 2,]", "[1, 2]"),
        ("{1: 'a', None: [], 'b': {}}", '{"1": "a", "null": [], "b": {}}'),
        ("'a' \"b\"", '"ab"'),
        (r"'\x41\101\u00e9\U0001F600\q'", '"AA\u00e9\U0001f600\\\\q"'),
        (r"r'\d+'", r'"\\d+"'),
        ("'a\\\nb'", '"ab"'),
        (r"'\ud83d'", r'"\ud83d"'),
        (r"'\ud83d\ude00'", r'"\ud83d\ude00"'),
        (" [ 1 ] ", "[1]"),
    ],
)
def test_literals(text: str, expected: str) -> None:
    assert to_json(text) == expected
    json.loads(expected)
    to_json(text).encode()


@pytest.mark.parametrize(
    "text",
    [
        *("", "foo", "f(1)", "1 + 2", "1_000", "007", "0x1f", "nan", "-", "--1", "1 2", "lambda: 1", "x.y", "1.2.3"),
        *("{1, 2}", "{[]: 1}", "[1 2]", "[,]", "[1", "{'a' 1}", "{'a': 1 'b': 2}", "{**{}}"),
        *("b'x'", "f'x'", "'open", "\ud83d"),
    ],
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        to_json(text)


@given(st.text(alphabet="[](){},:'\"\\aT1-.re *", max_size=20), places)
def test_nothing_is_too_strange(text: str, at: list[int]) -> None:
    assert scan(cut(text, at)) == scan([text])
    with contextlib.suppress(ValueError):
        json.loads(to_json(text))


def test_depth_is_bounded() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert scan([deep + ")"]) == (2 * MAX_DEPTH, True, False)
    assert to_json(deep) == deep
    assert scan([f"[{deep}]"])[2]
    with pytest.raises(ValueError, match="deep"):
        to_json("[" * 10_000)
