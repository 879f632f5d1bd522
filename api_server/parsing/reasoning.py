"""Thoughts apart from answers: `<think> ... </think>` is reasoning, what follows is for another reader.

A thought can only be at the beginning. It begins with the tag, or has begun already where the prompt ends with the tag
(`opened`), as the templates of DeepSeek and Qwen have it; models then write the closing tag alone, or the opening one
again, which is not shown. An output that ends inside the thought is all reasoning. A text that does not begin with a
thought is not for this reader, a closing tag in it is text like any other.

Newlines next to the tags, on either side, are part of how a thought is written and not shown, and neither is
whitespace before the opening tag. All else is told as it is. Knows nothing of what an answer may be.
"""

from enum import Enum, auto
from typing import Final

from api_server.parsing import Reader, Said
from api_server.parsing.tags import SPACE, unfinished

OPEN: Final = "<think>"
CLOSE: Final = "</think>"


class _At(Enum):
    START = auto()  # a thought may begin here
    OPENED = auto()  # the prompt has begun one, the tag may come once more
    THOUGHT = auto()
    BEHIND = auto()  # the closing tag
    ANSWER = auto()


class ReasoningReader:
    """Reads one choice's text; `inner` reads what is no reasoning. `opened` says that the prompt ends in a thought."""

    __slots__ = ("_at", "_begun", "_held", "_inner", "_newlines", "_space")

    def __init__(self, inner: Reader, *, opened: bool) -> None:
        self._inner: Final = inner
        self._at = _At.OPENED if opened else _At.START
        self._space: Final[list[str]] = []  # before whatever the text begins with
        self._held = ""  # the end of the text so far, which may be the beginning of a tag
        self._begun = False  # something of the thought has been told
        self._newlines = 0  # since then, which are told only if the thought goes on

    def feed(self, text: str) -> Said:
        if self._at is _At.ANSWER:
            return self._inner.feed(text)
        text, self._held = self._held + text, ""
        pos = 0
        reasoning: list[str] = []
        if self._at in (_At.START, _At.OPENED):
            pos = self._start(text)
        if self._at is _At.THOUGHT:
            pos = self._thought(text, pos, reasoning)
        if self._at is _At.BEHIND:
            pos = len(text) - len(text[pos:].lstrip("\n"))
            if pos < len(text):
                self._at = _At.ANSWER
        if self._at is not _At.ANSWER:
            return Said(reasoning="".join(reasoning))
        said = self._inner.feed("".join(self._space) + text[pos:])
        self._space.clear()
        return Said(said.content, "".join(reasoning), said.calls)

    def end(self) -> Said:
        reasoning, rest = "", ""
        if self._at is _At.THOUGHT:
            reasoning = "\n" * self._newlines + self._held if self._held else ""
        elif self._at is _At.OPENED:
            reasoning = self._held
        else:
            rest = "".join(self._space) + self._held
        said = self._inner.feed(rest) if rest else Said()
        last = self._inner.end()
        return Said(said.content + last.content, reasoning, said.calls + last.calls)

    def _start(self, text: str) -> int:
        """Up to the first character that is neither whitespace nor of the opening tag."""
        pos = len(text) - len(text.lstrip(SPACE if self._at is _At.START else "\n"))
        if text.startswith(OPEN, pos):
            self._at = _At.THOUGHT
            self._space.clear()
            return pos + len(OPEN)
        if self._at is _At.START:
            self._space.append(text[:pos])
        if pos == len(text):
            return pos
        if unfinished(text, (OPEN,), pos) == pos:
            self._held = text[pos:]
            return len(text)
        self._at = _At.ANSWER if self._at is _At.START else _At.THOUGHT
        return pos

    def _thought(self, text: str, pos: int, reasoning: list[str]) -> int:
        close = text.find(CLOSE, pos)
        cut = close if close >= 0 else unfinished(text, (CLOSE,), pos)
        said = text[pos:cut]
        if not self._begun:
            said = said.lstrip("\n")
        shown = said.rstrip("\n")
        if shown:
            self._begun = True
            reasoning.append("\n" * self._newlines + shown)
            self._newlines = 0
        self._newlines += len(said) - len(shown)
        if close < 0:
            self._held = text[cut:]
            return len(text)
        self._at = _At.BEHIND
        return close + len(CLOSE)
