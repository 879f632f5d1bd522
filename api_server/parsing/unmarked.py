"""Takes marks out of what a reader tells: special tokens that are shown to the reader and to nobody else.

Where such a token is not part of a thought or a call, the reader takes it for text. Knows the marks' spelling alone.
"""

import re
from collections.abc import Collection
from typing import Final

from api_server.parsing import Reader, Said
from api_server.parsing.tags import unfinished


class Unmarked:
    """Reads as `inner` does, without the `marks` in content and reasoning."""

    __slots__ = ("_content", "_inner", "_reasoning")

    def __init__(self, inner: Reader, marks: Collection[str]) -> None:
        self._inner: Final = inner
        self._content: Final = _Eraser(marks)
        self._reasoning: Final = _Eraser(marks)

    def feed(self, text: str) -> Said:
        said = self._inner.feed(text)
        return Said(self._content.feed(said.content), self._reasoning.feed(said.reasoning), said.calls)

    def end(self) -> Said:
        said = self._inner.end()
        return Said(self._content.end(said.content), self._reasoning.end(said.reasoning), said.calls)


class _Eraser:
    """A mark may come in two pieces, if a stop string begins in it. What can still become one is held back."""

    __slots__ = ("_held", "_marks", "_pattern")

    def __init__(self, marks: Collection[str]) -> None:
        self._marks: Final = tuple(marks)
        self._pattern: Final = re.compile("|".join(map(re.escape, marks)))
        self._held = ""

    def feed(self, text: str) -> str:
        if not text:
            return ""
        text = self._held + text
        behind = max((mark.end() for mark in self._pattern.finditer(text)), default=0)
        cut = unfinished(text, self._marks, behind)
        self._held = text[cut:]
        return self._pattern.sub("", text[:cut])

    def end(self, text: str) -> str:
        text, self._held = self._held + text, ""
        return self._pattern.sub("", text)
