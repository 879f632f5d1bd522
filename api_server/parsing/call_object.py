"""One call as a JSON object, `{"name": ..., "arguments": {...}}`, in a text that comes in pieces.

Read as it comes: the arguments go on as soon as it is certain whose they are. They are the model's own text, cut out
and not rewritten. Keys may come in any order; until the name is known the arguments are kept. `parameters` means the
same as `arguments`, the first of them counts, and other keys are passed over. Arguments that are wrapped in a string
are unwrapped; an empty string, `null` or no arguments at all are `{}`.

Knows the object alone, not what stands around it.
"""

import json
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from api_server.parsing.json_scan import Unescape, ValueScan
from api_server.parsing.telling import Telling

MAX_WORD: Final = 512  # characters of a key or a name as written: 64, were each of them escaped, and its quotes
NO_ARGUMENTS: Final = "{}"
_ARGUMENTS: Final = ("arguments", "parameters")
_SPACE: Final = re.compile(r"[ \t\r\n]*+")


class _Next(Enum):
    """What comes next, between the object's strings and values."""

    OPEN = auto()
    KEY = auto()  # or the end of the object: a comma too many does no harm
    COLON = auto()
    VALUE = auto()
    COMMA = auto()  # or the end of the object


class _Part(Enum):
    """What is being read of the object."""

    KEY = auto()
    NAME = auto()
    RAW = auto()  # the arguments as an object
    WRAPPED = auto()  # the arguments as a string
    NULL = auto()  # the arguments as a word, which can only be null
    OTHER = auto()


class CallObject:
    """A call is `told` once its name is known and there are arguments to go with it, or the object is complete.

    `over` says that no more belongs to the object: it is complete, or at a character that can't be part of one. If it
    is over and was never told it is no call, and `untold` is all of its text.
    """

    __slots__ = (
        "_accepts",
        "_arguments",
        "_given",
        "_key",
        "_keys_before_name",
        "_name",
        "_name_said",
        "_next",
        "_part",
        "_raw",
        "_room",
        "_scan",
        "_unescape",
        "_word",
        "over",
        "told",
    )

    def __init__(self, before: str, accepts: Callable[[str], bool], keys_before_name: frozenset[str] | None) -> None:
        """`before` is what of `untold` stands before the object. A name that is not `accepts`-ed ends the object, and
        so does a key that comes before the name and is not one of `keys_before_name`; None lets any pass."""
        self.over = False
        self.told = False
        self._accepts: Final = accepts
        self._keys_before_name: Final = keys_before_name
        self._raw = [before]
        self._next = _Next.OPEN
        self._part: _Part | None = None
        self._scan = ValueScan()
        self._word: list[str] = []
        self._room = 0
        self._key = ""
        self._name: str | None = None
        self._name_said = False
        self._arguments: list[str] = []  # not said yet
        self._given = False  # the arguments have begun
        self._unescape = Unescape()

    @property
    def untold(self) -> str:
        return "".join(self._raw)

    def feed(self, text: str, pos: int) -> int:
        """Reads on from `pos`; returns the position behind what belongs to the object."""
        start = pos
        while pos < len(text) and not self.over:
            if self._part is not None:
                pos = self._inside(text, pos, self._part)
            elif (space := _SPACE.match(text, pos)) and space.end() > pos:
                pos = space.end()
            else:
                pos = self._between(text, pos)
        if not self.told:
            self._raw.append(text[start:pos])
        return pos

    def tell(self, telling: Telling) -> None:
        """Says what is certain and not said yet."""
        if not self.told:
            return
        name = None if self._name_said else self._name
        if name is not None or self._arguments:
            telling.call(name, "".join(self._arguments))
        self._name_said = True
        self._arguments.clear()
        self._raw.clear()

    def _between(self, text: str, pos: int) -> int:
        """At a character that is no space, outside strings and values."""
        char = text[pos]
        match self._next, char:
            case _Next.OPEN, "{":
                self._next = _Next.KEY
            case _Next.KEY, '"':
                return self._begin(_Part.KEY, text, pos)
            case _Next.KEY | _Next.COMMA, "}":
                self._complete()
            case _Next.COLON, ":":
                self._next = _Next.VALUE
            case _Next.COMMA, ",":
                self._next = _Next.KEY
            case _Next.VALUE, _:
                return self._begin_value(text, pos, char)
            case _:
                self.over = True
                return pos
        return pos + 1

    def _begin_value(self, text: str, pos: int, char: str) -> int:
        part: _Part | None = _Part.OTHER
        if self._key == "name" and self._name is None:
            part = _Part.NAME if char == '"' else None
        elif self._key in _ARGUMENTS and not self._given:
            part = {"{": _Part.RAW, '"': _Part.WRAPPED, "n": _Part.NULL}.get(char)
            self._given = True
        if part is None:
            self.over = True
            return pos
        return self._begin(part, text, pos)

    def _begin(self, part: _Part, text: str, pos: int) -> int:
        self._part = part
        self._scan = ValueScan()
        self._word.clear()
        self._room = MAX_WORD
        return self._scan.feed(text, pos, pos + 1) if part is _Part.WRAPPED else pos

    def _inside(self, text: str, pos: int, part: _Part) -> int:
        """In a key or a value, its quotes included unless it is wrapped arguments."""
        is_word = part in (_Part.KEY, _Part.NAME, _Part.NULL)
        end = min(len(text), pos + self._room) if is_word else len(text)
        behind = self._scan.feed(text, pos, end)
        self._take(part, text[pos:behind])
        if self._scan.done:
            self._part = None
            self._finish(part)
        else:
            self._room -= behind - pos
            self.over = self._scan.broken or (is_word and self._room == 0)
        if self._name is not None and self._arguments:
            self.told = True
        return behind

    def _take(self, part: _Part, piece: str) -> None:
        match part:
            case _Part.RAW if piece:
                self._arguments.append(piece)
            case _Part.WRAPPED:
                closed = self._scan.done
                if said := self._unescape.feed(piece[:-1] if closed else piece, last=closed):
                    self._arguments.append(said)
            case _Part.KEY | _Part.NAME | _Part.NULL:
                self._word.append(piece)
            case _:
                pass

    def _finish(self, part: _Part) -> None:
        """A key or a value is complete."""
        self._next = _Next.COMMA
        match part:
            case _Part.KEY:
                self._next = _Next.COLON
                self._key = self._string()
                self.over = self.over or not self._may_follow(self._key)
            case _Part.NAME:
                self._name = self._string()
                self.over = self.over or not self._accepts(self._name)
                if self.over:
                    self._name = None
            case _Part.NULL:
                self.over = "".join(self._word) != "null"
                if not self.over:
                    self._arguments.append(NO_ARGUMENTS)
            case _Part.WRAPPED if not (self.told or self._arguments):
                self._arguments.append(NO_ARGUMENTS)
            case _:
                pass

    def _string(self) -> str:
        """What a key or a name says; ends the object where that is no JSON."""
        try:
            return str(json.loads("".join(self._word), strict=False))
        except ValueError:
            self.over = True
            return ""

    def _may_follow(self, key: str) -> bool:
        allowed = self._keys_before_name
        return allowed is None or self._name is not None or key == "name" or key in _ARGUMENTS or key in allowed

    def _complete(self) -> None:
        """Behind the closing bracket."""
        self.over = True
        if self._name is None:
            return
        if not (self.told or self._arguments):
            self._arguments.append(NO_ARGUMENTS)
        self.told = True
