"""Calls as Llama 3.2 and 4 write them in Python: the whole answer is a list of calls.

    [get_weather(city="Paris", days=3), get_time()]

`<|python_start|>` (or `<|python_tag|>`) may stand before the list and `<|python_end|>` behind it. Arguments are
keywords with literals, `**{...}` stands for keywords that are no Python names. They become one JSON object, and are
told one by one, as soon as each is complete. The rules:

- A call is told with its first argument, or at its end if it has none. A text that is no list of calls of known tools
  is content, all of it, and known to be at the first character that does not fit, or at the end of an argument that is
  no literal.
- What was told stays. Where the list breaks off or goes on as none, what was not told yet is content; the object of a
  call that was told in part is then left open, so that no client takes it for complete.
- Commas and whitespace between and behind calls are not content.

Time is linear in the text. Knows of a tool its name alone.
"""

import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Final

from api_server.parsing import Said
from api_server.parsing.python_literal import LiteralScan, to_json
from api_server.parsing.tags import SPACE, unfinished
from api_server.parsing.telling import Telling

PYTHON_START: Final = "<|python_start|>"
PYTHON_END: Final = "<|python_end|>"
PYTHON_TAG: Final = "<|python_tag|>"
MAX_KEYWORD: Final = 256  # characters up to the equals sign

_SPACE: Final = re.compile(r"[ \t\r\n]*+")
_NAME: Final = re.compile(r"[\w.-]*+")
_KEYWORD: Final = re.compile(r"(?P<name>[^\W\d]\w*+)[ \t]*+(?P<equals>=?)")


class _At(Enum):
    START = auto()
    NAME = auto()
    KEYWORD = auto()  # or the end of the call
    VALUE = auto()
    AFTER = auto()  # a call: a comma, or the end of the list
    CLOSED = auto()  # the list is
    PLAIN = auto()  # from here on all is content


class PythonicReader:
    """Reads one choice's text, which may call the tools `names`."""

    __slots__ = (
        "_at",
        "_held",
        "_keyword",
        "_known",
        "_members",
        "_name",
        "_raw",
        "_scan",
        "_telling",
        "_value",
    )

    def __init__(self, names: Collection[str], max_calls: int | None = None) -> None:
        self._known: Final = frozenset(names)
        self._telling: Final = Telling(max_calls)
        self._at = _At.START
        self._held = ""  # the end of the text so far, which may be the beginning of a tag, a name or a keyword
        self._raw: Final[list[str]] = []  # not told yet
        self._name: str | None = None  # of the call, until it is told
        self._members = 0  # of its arguments, told so far
        self._keyword: str | None = None  # None is `**`
        self._scan = LiteralScan()
        self._value: list[str] = []

    def feed(self, text: str) -> Said:
        text, self._held = self._held + text, ""
        pos = 0
        while pos < len(text) and self._at is not _At.PLAIN:
            pos = self._step(text, pos)
        if self._at is _At.PLAIN:
            self._telling.content(text[pos:])
        return self._telling.said()

    def end(self) -> Said:
        if self._at is not _At.PLAIN:
            rest = "".join(self._raw) + self._held
            if rest.strip(SPACE + ",") or not self._telling.calls:
                self._telling.content(rest)
        return self._telling.said()

    def _step(self, text: str, pos: int) -> int:
        if self._at is _At.VALUE:
            return self._in_value(text, pos)
        space = _SPACE.match(text, pos)
        if space is not None and space.end() > pos:
            return self._read(text, pos, space.end(), self._at)
        match self._at:
            case _At.START if text[pos] == "[":
                return self._read(text, pos, pos + 1, _At.NAME)
            case _At.START:
                return self._tag(text, pos, (PYTHON_START, PYTHON_TAG))
            case _At.NAME if text[pos] != "]":
                return self._in_name(text, pos)
            case _At.NAME | _At.AFTER if text[pos] == "]" and self._telling.calls:
                self._raw.clear()
                self._at = _At.CLOSED
                return pos + 1
            case _At.AFTER if text[pos] == ",":
                return self._read(text, pos, pos + 1, _At.NAME)
            case _At.KEYWORD if text[pos] == ")":
                return self._close_call(pos)
            case _At.KEYWORD:
                return self._in_keyword(text, pos)
            case _At.CLOSED:
                return self._tag(text, pos, (PYTHON_END,))
            case _:
                return self._give_up(pos)

    def _tag(self, text: str, pos: int, tags: tuple[str, ...]) -> int:
        for tag in tags:
            if text.startswith(tag, pos):
                self._read(text, pos, pos + len(tag), self._at)
                if self._telling.calls:
                    self._raw.clear()
                return pos + len(tag)
        if unfinished(text, tags, pos) == pos:
            return self._hold(text, pos)
        return self._give_up(pos)

    def _in_name(self, text: str, pos: int) -> int:
        match = _NAME.match(text, pos)
        behind = pos if match is None else match.end()
        name = text[pos:behind]
        if behind == len(text) and any(known.startswith(name) for known in self._known):
            return self._hold(text, pos)
        if not text.startswith("(", behind) or name not in self._known:
            return self._give_up(pos)
        self._name = name
        self._members = 0
        return self._read(text, pos, behind + 1, _At.KEYWORD)

    def _in_keyword(self, text: str, pos: int) -> int:
        match = _KEYWORD.match(text, pos)
        if text.startswith("**", pos):
            self._keyword, behind = None, pos + 2
        elif text[pos] == "*" and pos + 1 == len(text):
            return self._hold(text, pos)
        elif match is None or match.end() - pos > MAX_KEYWORD:
            return self._give_up(pos)
        elif match["equals"]:
            self._keyword, behind = match["name"], match.end()
        else:
            return self._hold(text, pos) if match.end() == len(text) else self._give_up(pos)
        self._scan = LiteralScan()
        self._value.clear()
        return self._read(text, pos, behind, _At.VALUE)

    def _in_value(self, text: str, pos: int) -> int:
        behind = self._scan.feed(text, pos)
        self._value.append(text[pos:behind])
        self._raw.append(text[pos:behind])
        if self._scan.broken:
            return self._give_up(behind)
        if not self._scan.done:
            return behind
        try:
            members = _members(self._keyword, to_json("".join(self._value)))
        except ValueError:
            return self._give_up(behind)
        if members:
            self._tell(("{" if self._members == 0 else ", ") + members)
            self._members += 1
        if text[behind] == ")":
            return self._close_call(behind)
        return self._read(text, behind, behind + 1, _At.KEYWORD)

    def _close_call(self, pos: int) -> int:
        """At the bracket behind the arguments."""
        self._tell("}" if self._members else "{}")
        self._telling.calls += 1
        self._at = _At.AFTER
        return pos + 1

    def _tell(self, arguments: str) -> None:
        """A part of the call's arguments; all that was read until now is told by it."""
        self._telling.call(self._name, arguments)
        self._name = None
        self._raw.clear()

    def _read(self, text: str, pos: int, behind: int, at: _At) -> int:
        """What stands up to `behind` is part of a list of calls."""
        self._raw.append(text[pos:behind])
        self._at = at
        return behind

    def _hold(self, text: str, pos: int) -> int:
        self._held = text[pos:]
        return len(text)

    def _give_up(self, pos: int) -> int:
        """What stands at `pos` is no part of a list of calls, so neither is what was not told yet, nor what follows."""
        self._telling.content("".join(self._raw))
        self._raw.clear()
        self._at = _At.PLAIN
        return pos


def _members(keyword: str | None, value: str) -> str:
    """The arguments that one of Python's stands for, as members of a JSON object. Raises ValueError for a `**` that is
    not before a dict."""
    if keyword is not None:
        return f'"{keyword}": {value}'
    if not value.startswith("{"):
        raise ValueError("what is unpacked is no dict")
    return value[1:-1]
