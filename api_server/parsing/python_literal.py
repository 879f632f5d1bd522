"""Python literals as JSON: where one ends in a text that comes in pieces, and what it is as JSON.

Literals are strings, numbers, True, False, None, lists, tuples and dicts of them; JSON's own true, false and null count
too, for models mix the two. No expression is evaluated. Time is linear in the text.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from api_server.parsing.json_scan import MAX_DEPTH

_CLOSERS: Final = {"{": "}", "[": "]", "(": ")"}
_OUTSIDE: Final = re.compile(r"[^'\"\[\](){},]*+")
_IN_STRING: Final = {
    "'": re.compile(r"(?:[^'\\]++|\\.)*+", re.DOTALL),
    '"': re.compile(r"(?:[^\"\\]++|\\.)*+", re.DOTALL),
}
_TOKEN: Final = re.compile(
    r"\s*+(?:"
    r"(?P<prefix>[rRuU]?)(?:"
    r"'''(?P<a>(?:[^'\\]++|\\.|'(?!''))*+)'''|\"\"\"(?P<b>(?:[^\"\\]++|\\.|\"(?!\"\"))*+)\"\"\""
    r"|'(?P<c>(?:[^'\\]++|\\.)*+)'|\"(?P<d>(?:[^\"\\]++|\\.)*+)\")"
    r"|(?=[+-]?\.?[0-9])(?P<sign>[+-]?)(?P<whole>[0-9]*+)(?P<point>\.?)(?P<part>[0-9]*+)(?P<exponent>(?:[eE][+-]?[0-9]+)?)(?![\w.])"
    r"|(?P<name>[^\W\d]\w*+)"
    r"|(?P<mark>[\[\](){},:])"
    r")",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>00(?:0[0-9a-fA-F]|10)"
    r"[0-9a-fA-F]{4}))|(?P<letter>.))",
    re.DOTALL,
)
_LETTERS: Final = dict(zip("ntrbfav\\'\"", "\n\t\r\b\f\a\v\\'\"", strict=True)) | {"\n": ""}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NAMES: Final = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


class LiteralScan:
    """One argument's value. `done` before the comma or the bracket that follows it, `broken` at a bracket that can't
    be part of it."""

    __slots__ = ("_closers", "_escaped", "_opening", "_quote", "_run", "broken", "done")

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._closers: Final[list[str]] = []
        self._quote = ""  # that ends the string: one, or three
        self._opening = 0  # quotes since the string began, while it may still become one of three
        self._run = 0  # quotes in a row, in a string that three end
        self._escaped = False

    def feed(self, text: str, pos: int) -> int:
        """Reads on from `pos`; returns the position behind what belongs to the value."""
        while pos < len(text) and not (self.done or self.broken):
            if self._opening:
                pos = self._open_string(text[pos], pos)
            elif self._quote:
                pos = self._string(text, pos)
            else:
                pos = self._outside(text, pos)
        return pos

    def _open_string(self, char: str, pos: int) -> int:
        if char == self._quote:
            self._opening += 1
            if self._opening == 3:
                self._quote, self._opening = char * 3, 0
            return pos + 1
        if self._opening == 2:  # it was empty
            self._quote = ""
        self._opening = 0
        return pos

    def _string(self, text: str, pos: int) -> int:
        if self._escaped:
            self._escaped = False
            return pos + 1
        match = _IN_STRING[self._quote[0]].match(text, pos)
        behind = pos if match is None else match.end()
        if behind > pos:
            self._run = 0
        if behind == len(text):
            return behind
        if text[behind] == "\\":
            self._escaped = True
            self._run = 0
        else:
            self._run += 1
            if self._run == len(self._quote):
                self._quote, self._run = "", 0
        return behind + 1

    def _outside(self, text: str, pos: int) -> int:
        match = _OUTSIDE.match(text, pos)
        behind = pos if match is None else match.end()
        if behind == len(text):
            return behind
        char = text[behind]
        if char in "'\"":
            self._quote, self._opening = char, 1
        elif char in _CLOSERS:
            self._closers.append(_CLOSERS[char])
            self.broken = len(self._closers) > MAX_DEPTH
        elif not self._closers:
            self.done = char in ",)"
            self.broken = not self.done
            return behind
        elif char != ",":
            self.broken = self._closers.pop() != char
        return behind + 1


def to_json(text: str) -> str:
    """The literal as JSON text. Raises ValueError for what is none, and for one that JSON can't say."""
    translation = _Translation()
    for token in _tokens(text):
        translation.take(token)
    json.loads(made := "".join(translation.out), parse_int=str, parse_float=str)
    return made


def _tokens(text: str) -> Iterator[re.Match[str]]:
    pos = 0
    while (token := _TOKEN.match(text, pos)) is not None:
        yield token
        pos = token.end()
    if text[pos:].strip():
        raise ValueError("no Python literal")


@dataclass(slots=True)
class _Bracket:
    mark: str
    place: int  # in what is written
    comma: bool = False  # there is one in it


class _Translation:
    """Goes through the tokens once and writes each as JSON has it. What Python and JSON have alike is not checked
    here: JSON's own parser does that with what was written."""

    def __init__(self) -> None:
        self.out: Final[list[str]] = []
        self._brackets: Final[list[_Bracket]] = []
        self._last = ""  # token: a mark, `word` or `string`; any closing bracket is `]`

    def take(self, token: re.Match[str]) -> None:
        match token["mark"]:
            case None:
                self._scalar(token)
            case "," | ":" as mark:
                self._part(mark)
            case mark if mark in _CLOSERS:
                self._open(mark)
            case mark:
                self._close(mark)

    def _scalar(self, token: re.Match[str]) -> None:
        said = _string(token)
        joins = said is not None and self._last == "string"  # Python joins adjacent strings
        if self._behind_value and not joins:
            raise ValueError("a comma is missing")
        if said is None:
            self.out.append(_word(token))
        elif joins:
            self.out[-1:] = [_escape(said), '"']
        else:
            self.out.extend(('"', _escape(said), '"'))
        self._last = "word" if said is None else "string"

    def _open(self, mark: str) -> None:
        if self._behind_value:
            raise ValueError("a comma is missing")
        if len(self._brackets) == MAX_DEPTH:
            raise ValueError("nested too deep")
        self._brackets.append(_Bracket(mark, len(self.out)))
        self.out.append("{" if mark == "{" else "[")
        self._last = mark

    def _part(self, mark: str) -> None:
        if not (self._brackets and self._behind_value):
            raise ValueError("a value is missing")
        bracket = self._brackets[-1]
        if mark == ",":
            bracket.comma = True
        elif bracket.mark != "{" or self._last == "]":
            raise ValueError("what is before a colon is no key")
        elif self._last == "word":
            self.out[-1] = f'"{self.out[-1]}"'
        self.out.append(mark + " ")
        self._last = mark

    def _close(self, mark: str) -> None:
        if not self._brackets or _CLOSERS[self._brackets[-1].mark] != mark:
            raise ValueError("a bracket does not fit")
        bracket = self._brackets.pop()
        if self._last == ",":
            self.out.pop()
        if mark == ")" and not bracket.comma and self._last != "(":
            self.out[bracket.place] = ""  # around one value it makes no tuple
        else:
            self.out.append("]" if mark == ")" else mark)
        self._last = "]"

    @property
    def _behind_value(self) -> bool:
        return self._last in ("word", "string", "]")


def _word(token: re.Match[str]) -> str:
    """A number or a name."""
    name = token["name"]
    if name is None:
        return _number(token)
    if name not in _NAMES:
        raise ValueError(f"{name} is no literal")
    return _NAMES[name]


def _string(token: re.Match[str]) -> str | None:
    """What a token says that is a string; None for any other."""
    body = next((token[form] for form in "abcd" if token[form] is not None), None)
    if body is None or token["prefix"] in ("r", "R"):
        return body
    return _ESCAPE.sub(_unescape, body)


def _unescape(escape: re.Match[str]) -> str:
    if octal := escape["octal"]:
        return chr(int(octal, 8))
    if code := escape["x"] or escape["u"] or escape["U"]:
        return chr(int(code, 16))
    return _LETTERS.get(escape["letter"], escape[0])


def _escape(text: str) -> str:
    """As JSON has it between quotes. A surrogate can't be written in UTF-8, so it is escaped; two that belong together
    then are one character to whoever reads the JSON."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False)[1:-1])


def _number(token: re.Match[str]) -> str:
    """JSON wants a digit on both sides of the point, and neither a plus nor zeros before the number."""
    whole, part = token["whole"], token["part"]
    sign = "-" if token["sign"] == "-" else ""
    significant = whole.lstrip("0") or "0"
    if token["point"]:
        return f"{sign}{significant}.{part or '0'}{token['exponent']}"
    if not token["exponent"] and significant != whole and whole.strip("0"):
        raise ValueError("Python has no numbers with leading zeros")
    return f"{sign}{significant}{token['exponent']}"
