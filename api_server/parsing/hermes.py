"""Calls as Hermes and Qwen models write them, in the middle of text:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

The tag says that a call is meant, so any well-formed name is one, known or not: a client can tell the model of its
error. What is a call and what is not:

- A call is told as soon as its name is known and its arguments begin, and its arguments as they come. What was told
  stays, also if the call breaks off or goes on as no JSON; then the text goes on as content.
- Text between tags that never became a call is content, tags included, just as it was written.
- Behind a call one closing tag is expected and not shown, nor is the beginning of one that was cut off; a missing one
  is not missed. Whitespace that stands alone at the beginning, between calls or behind them is not shown either if
  there are calls.

Time is linear in the text. Beside the start of a call that can still turn out to be none, what is held back is
whitespace and the beginning of a tag. Knows nothing of tools.
"""

import re
from typing import Final

from api_server.parsing import Said
from api_server.parsing.call_object import CallObject
from api_server.parsing.tags import SPACE, unfinished
from api_server.parsing.telling import Telling

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

_OPEN: Final = re.compile(OPEN)
_EITHER: Final = re.compile(f"{OPEN}|{CLOSE}")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what OpenAI's API lets a function be called


class HermesReader:
    """Reads one choice's text."""

    __slots__ = ("_call", "_held", "_quiet", "_space", "_telling", "_unclosed")

    def __init__(self, max_calls: int | None = None) -> None:
        self._telling: Final = Telling(max_calls)
        self._held = ""  # the end of the text so far, which may be the beginning of a tag
        self._quiet = True  # there was no content since the beginning or the last call
        self._space: Final[list[str]] = []  # whitespace since then
        self._call: CallObject | None = None
        self._unclosed = False  # there was no closing tag since the last call

    def feed(self, text: str) -> Said:
        text, self._held = self._held + text, ""
        pos = 0
        while pos < len(text):
            pos = self._text(text, pos) if self._call is None else self._inside(text, pos, self._call)
        return self._telling.said()

    def end(self) -> Said:
        if self._call is not None:
            self._leave(self._call)
        if not (self._unclosed and self._quiet and CLOSE.startswith(self._held)):  # else a closing tag was cut off
            self._content(self._held)
        self._held = ""
        if not self._telling.calls:
            self._telling.content("".join(self._space))
        return self._telling.said()

    def _text(self, text: str, pos: int) -> int:
        """Outside a call."""
        tag = (_EITHER if self._unclosed else _OPEN).search(text, pos)
        if tag is None:
            cut = unfinished(text, (OPEN, CLOSE) if self._unclosed else (OPEN,), pos)
            self._content(text[pos:cut])
            self._held = text[cut:]
            return len(text)
        self._content(text[pos : tag.start()])
        self._unclosed = False
        if tag[0] == OPEN:
            self._call = CallObject(OPEN, _is_name, None)
        return tag.end()

    def _inside(self, text: str, pos: int, call: CallObject) -> int:
        """In a call, or in what looks like one."""
        pos = call.feed(text, pos)
        if call.told:
            self._quiet = True
            self._space.clear()
            call.tell(self._telling)
        if call.over:
            self._leave(call)
        return pos

    def _leave(self, call: CallObject) -> None:
        self._call = None
        if call.told:
            self._telling.calls += 1
            self._unclosed = True
        else:
            self._content(call.untold)

    def _content(self, text: str) -> None:
        if self._quiet:
            if not text.strip(SPACE):
                self._space.append(text)
                return
            self._quiet = False
            self._telling.content("".join(self._space))
            self._space.clear()
        self._telling.content(text)


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
