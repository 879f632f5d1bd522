"""Python literals as JSON: where one ends in a text that comes in pieces, and what it is as JSON.

Literals are strings, numbers, True, False, None, lists, tuples and dicts of them; JSON's own true, false and null count
too, for models mix the two. No expression is evaluated. Time is linear in the text.
"""

import json
import re
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
    parser = _Parser(text)
    parser.value()
    parser.expect_end()
    return "".join(parser.out)


class _Parser:
    """Recursive descent, one level of Python's stack or two per bracket; the scan has bounded those."""

    def __init__(self, text: str) -> None:
        self.out: Final[list[str]] = []
        self._text: Final = text
        self._depth = 0
        self._pos = 0
        self._token = self._next()

    def _next(self) -> re.Match[str] | None:
        """The token at the position, which moves behind it; None at the end."""
        token = _TOKEN.match(self._text, self._pos)
        if token is None:
            if self._text[self._pos :].strip():
                raise ValueError("no Python literal")
            return None
        self._pos = token.end()
        return token

    def _advance(self) -> re.Match[str]:
        token = self._token
        if token is None:
            raise ValueError("the literal is not complete")
        self._token = self._next()
        return token

    def _at(self, mark: str) -> bool:
        return self._token is not None and self._token["mark"] == mark

    def _skip(self, mark: str) -> bool:
        """Whether the mark stands here; it is read then."""
        found = self._at(mark)
        if found:
            self._advance()
        return found

    def expect_end(self) -> None:
        if self._token is not None:
            raise ValueError("more than one literal")

    def value(self) -> None:
        """Writes the value that begins here."""
        if self._depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        self._depth += 1
        if self._skip("["):
            self._list()
        elif self._skip("("):
            self._tuple()
        elif self._skip("{"):
            self._dict()
        else:
            self.out.append(self._scalar())
        self._depth -= 1

    def _list(self) -> None:
        self.out.append("[")
        self._items("]")
        self.out.append("]")

    def _tuple(self) -> None:
        """A bracket around one value without a comma is no tuple."""
        place = len(self.out)
        self.out.append("")
        is_tuple = self._items(")") != (1, False)
        if is_tuple:
            self.out[place] = "["
            self.out.append("]")

    def _items(self, closer: str) -> tuple[int, bool]:
        """How many there are, and whether a comma follows the last one."""
        count, comma = 0, False
        while not self._skip(closer):
            if count:
                if not comma:
                    raise ValueError("a comma is missing")
                self.out.append(", ")
            self.value()
            count += 1
            comma = self._skip(",")
        return count, comma

    def _dict(self) -> None:
        self.out.append("{")
        separator = ""
        while not self._skip("}"):
            key = self._scalar()
            self.out.append(separator + (key if key.startswith('"') else f'"{key}"'))
            if not self._skip(":"):
                raise ValueError("a colon is missing")
            self.out.append(": ")
            self.value()
            if not self._skip(",") and not self._at("}"):
                raise ValueError("a comma is missing")
            separator = ", "
        self.out.append("}")

    def _scalar(self) -> str:
        token = self._advance()
        if (name := token["name"]) is not None:
            if name not in _NAMES:
                raise ValueError(f"{name} is no literal")
            return _NAMES[name]
        if token["sign"] is not None:
            return _number(token)
        if (said := _string(token)) is None:
            raise ValueError("a value is missing")
        strings = [said]
        while self._token is not None and (said := _string(self._token)) is not None:  # Python joins adjacent strings
            strings.append(said)
            self._advance()
        return _quote("".join(strings))


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


def _quote(text: str) -> str:
    """As a JSON string. A surrogate can't be written in UTF-8, so it is escaped; two that belong together then are one
    character to whoever reads the JSON."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


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
