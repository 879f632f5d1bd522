"""Calls as Llama 3.1 to 3.3 write them: the whole answer is JSON.

    {"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "get_time", "parameters": {}}

`<|python_tag|>` may stand before an object. Objects are separated by semicolons, commas or whitespace, or are a JSON
array. Nothing marks such a text as a call but its beginning, so the rules are strict:

- Only a text that begins with a call of a known tool has calls. Any other is content, and known to be at the first
  character that is none of a call's: a JSON answer is held back up to its first key, mostly.
- From the first thing behind a call that is no separator and no call of a known tool, the text is content.
- What was told of a call stays, also if it breaks off or goes on as no JSON.

Time is linear in the text. Knows of a tool its name alone.
"""

import re
from collections.abc import Collection
from typing import Final

from api_server.parsing import Said
from api_server.parsing.call_object import CallObject
from api_server.parsing.tags import unfinished
from api_server.parsing.telling import Telling

PYTHON_TAG: Final = "<|python_tag|>"

_SPACE: Final = re.compile(r"[ \t\r\n]*+")
_SEPARATORS: Final = re.compile(r"[ \t\r\n;,]*+")
_KEYS_BEFORE_NAME: Final = frozenset({"type", "id"})


class LlamaReader:
    """Reads one choice's text, which may call the tools `names`."""

    __slots__ = ("_array", "_call", "_closed", "_held", "_known", "_plain", "_raw", "_telling")

    def __init__(self, names: Collection[str], max_calls: int | None = None) -> None:
        self._known: Final = frozenset(names)
        self._telling: Final = Telling(max_calls)
        self._held = ""  # the end of the text so far, which may be the beginning of a tag
        self._raw: Final[list[str]] = []  # what stands before a call, since the beginning or the last call
        self._array = False
        self._closed = False  # the array is
        self._plain = False  # from here on all is content
        self._call: CallObject | None = None

    def feed(self, text: str) -> Said:
        text, self._held = self._held + text, ""
        pos = 0
        while pos < len(text):
            if self._plain:
                self._telling.content(text[pos:])
                break
            pos = self._between(text, pos) if self._call is None else self._inside(text, pos, self._call)
        return self._telling.said()

    def end(self) -> Said:
        if self._call is not None:
            self._leave(self._call)
        if not self._plain and (self._held or not self._telling.calls):
            self._give_up()
        self._telling.content(self._held)
        self._held = ""
        return self._telling.said()

    def _between(self, text: str, pos: int) -> int:
        """Before an object, or behind the last one."""
        space = (_SEPARATORS if self._telling.calls else _SPACE).match(text, pos)
        behind = self._mark(text, pos) if space is None or space.end() == pos else space.end()
        if behind > pos:
            self._raw.append(text[pos:behind])
            return behind
        if text[pos] == "]" and self._array and self._telling.calls and not self._closed:
            self._closed = True
            self._raw.clear()
            return pos + 1
        if not self._closed:
            if text[pos] == "{":
                self._call = CallObject("", self._known.__contains__, _KEYS_BEFORE_NAME)
                return pos
            if unfinished(text, (PYTHON_TAG,), pos) == pos:
                self._held = text[pos:]
                return len(text)
        self._give_up()
        return pos

    def _mark(self, text: str, pos: int) -> int:
        """Behind the array's bracket or the tag, if one is to be expected at `pos`."""
        if text[pos] == "[" and not (self._telling.calls or self._array):
            self._array = True
            return pos + 1
        if text.startswith(PYTHON_TAG, pos) and not self._closed:
            return pos + len(PYTHON_TAG)
        return pos

    def _inside(self, text: str, pos: int, call: CallObject) -> int:
        """In a call, or in what looks like one."""
        pos = call.feed(text, pos)
        if call.told:
            self._raw.clear()
            call.tell(self._telling)
        if call.over:
            self._leave(call)
        return pos

    def _leave(self, call: CallObject) -> None:
        self._call = None
        if call.told:
            self._telling.calls += 1
        else:
            self._raw.append(call.untold)
            self._give_up()

    def _give_up(self) -> None:
        """What stands here is no call, and neither is what follows."""
        self._plain = True
        self._telling.content("".join(self._raw))
        self._raw.clear()
