"""From what a model writes to what it means: reasoning, tool calls, and the rest, which is content.

A reader is fed the visible text as it comes and says of each part what it is, as early as that is certain. However the
text is cut into pieces, what it says joins to the same. Pure; knows no tokens and no HTTP.
"""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class CallDelta:
    """A part of tool call `index`. `name` comes once, whole, in the call's first delta; `arguments` is JSON text whose
    parts are to be joined."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Said:
    """What a piece of text turned out to be."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class Reader(Protocol):
    """Reads one choice's text."""

    def feed(self, text: str) -> Said:
        """What is certain now."""
        ...

    def end(self) -> Said:
        """No text follows: what was held back, which may be content that only looked like a call."""
        ...
