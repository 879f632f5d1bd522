"""Where a JSON value ends, in a text that comes in pieces; and what a JSON string says, likewise.

A value is followed by its strings and brackets alone. Whether it is good JSON in between is for its consumer to say:
a model's arguments are passed on as the model wrote them. Time is linear in the text however it is cut; what is kept
from piece to piece is the open brackets, and of a string an escape that is not complete.
"""

import re
from typing import Final

MAX_DEPTH: Final = 128  # of brackets; the grammars that force calls go no deeper

_CLOSERS: Final = {"{": "}", "[": "]"}
# Possessive, so that a match neither backtracks nor remembers where it could.
_IN_STRING: Final = re.compile(r"(?:[^\"\\]++|\\.)*+", re.DOTALL)
_OUTSIDE: Final = re.compile(r"[^\"{}\[\]]*+")
_WORD: Final = re.compile(r"[^\s\"{}\[\],:]*+")
_TOKEN: Final = re.compile(
    r"(?P<plain>[^\\]++)"
    r"|\\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u(?P<unit>[0-9a-fA-F]{4})"
    r"|\\(?P<letter>.)",
    re.DOTALL,
)
# Every text that is an escape, or a surrogate pair of two, only if more follows.
_PARTIAL: Final = re.compile(
    r"\\(?:u(?:[0-9a-fA-F]{1,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?)?"
)
_LONGEST_PARTIAL: Final = len(r"\ud83d\ude0")
_LETTERS: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}


class ValueScan:
    """One value, from its first character on. `done` behind its last one, `broken` at one that can't be part of it.

    A number or a word ends before the first character that is none of it, and so is not done before that comes.
    """

    __slots__ = ("_begun", "_closers", "_escaped", "_in_string", "broken", "done")

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._begun = False
        self._closers: Final[list[str]] = []
        self._in_string = False
        self._escaped = False  # the text so far ends with a backslash that is waiting for its character

    def feed(self, text: str, pos: int, end: int) -> int:
        """Reads `text[pos:end]`; returns the position behind what belongs to the value."""
        while pos < end and not (self.done or self.broken):
            if self._in_string:
                pos = self._string(text, pos, end)
            elif self._closers:
                pos = self._bracketed(text, pos, end)
            elif self._begun or text[pos] not in '"{[':
                pos = self._word(text, pos, end)
            else:
                pos = self._open(text[pos], pos)
        return pos

    def _open(self, char: str, pos: int) -> int:
        """Goes into a string, an object or a list."""
        self._begun = True
        if char == '"':
            self._in_string = True
        elif len(self._closers) == MAX_DEPTH:
            self.broken = True
            return pos
        else:
            self._closers.append(_CLOSERS[char])
        return pos + 1

    def _string(self, text: str, pos: int, end: int) -> int:
        if self._escaped:
            self._escaped = False
            return pos + 1
        pos = _end(_IN_STRING, text, pos, end)
        if pos == end:
            return pos
        if text[pos] == "\\":  # the last one of this text, as it has no character yet
            self._escaped = True
        else:
            self._in_string = False
            self.done = not self._closers
        return pos + 1

    def _bracketed(self, text: str, pos: int, end: int) -> int:
        pos = _end(_OUTSIDE, text, pos, end)
        if pos == end:
            return pos
        if text[pos] in '"{[':
            return self._open(text[pos], pos)
        if text[pos] != self._closers[-1]:
            self.broken = True
            return pos
        self._closers.pop()
        self.done = not self._closers
        return pos + 1

    def _word(self, text: str, pos: int, end: int) -> int:
        behind = _end(_WORD, text, pos, end)
        self._begun = self._begun or behind > pos
        if behind < end:
            self.done = self._begun
            self.broken = not self._begun
        return behind


class Unescape:
    """The text of a JSON string, from the raw text between its quotes.

    A surrogate pair becomes its character, also when its halves come apart. A half that stays alone remains an escape,
    for it can't be written in UTF-8; so does an escape that JSON does not have.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, raw: str, *, last: bool = False) -> str:
        """What is certain now; with `last` all of it."""
        raw, self._held = self._held + raw, ""
        parts: list[str] = []
        pos = 0
        while pos < len(raw):
            if raw[pos] == "\\" and not last and self._is_partial(raw, pos):
                self._held = raw[pos:]
                break
            token = _TOKEN.match(raw, pos)
            if token is None:  # a backslash and nothing behind it: a string that was cut off
                parts.append(raw[pos:])
                break
            parts.append(_say(token))
            pos = token.end()
        return "".join(parts)

    @staticmethod
    def _is_partial(raw: str, pos: int) -> bool:
        return len(raw) - pos <= _LONGEST_PARTIAL and _PARTIAL.fullmatch(raw, pos) is not None


def _say(token: re.Match[str]) -> str:
    if plain := token["plain"]:
        return plain
    if high := token["high"]:
        return chr(0x10000 + ((int(high, 16) & 0x3FF) << 10) + (int(token["low"], 16) & 0x3FF))
    if unit := token["unit"]:
        code = int(unit, 16)
        return token[0] if 0xD800 <= code <= 0xDFFF else chr(code)
    return _LETTERS.get(token["letter"], token[0])


def _end(pattern: re.Pattern[str], text: str, pos: int, end: int) -> int:
    """Behind what the pattern matches at `pos`, which may be nothing."""
    match = pattern.match(text, pos, end)
    return pos if match is None else match.end()
