"""What a reader is about to say, collected while it goes through a piece of text. Knows no format."""

from typing import Final

from api_server.parsing import CallDelta, Said


class Telling:
    """Takes content and parts of calls in the order of the text, and joins them in time linear in their size."""

    __slots__ = ("_calls", "_content")

    def __init__(self) -> None:
        self._content: Final[list[str]] = []
        self._calls: Final[list[tuple[int, str | None, list[str]]]] = []  # index, name, parts of the arguments

    def content(self, text: str) -> None:
        self._content.append(text)

    def call(self, index: int, name: str | None, arguments: str) -> None:
        """A part of call `index`, with its `name` if it is the first part."""
        if name is None and self._calls and self._calls[-1][0] == index:
            self._calls[-1][2].append(arguments)
        else:
            self._calls.append((index, name, [arguments]))

    def said(self) -> Said:
        """Everything since the last time."""
        calls = [CallDelta(index, name, "".join(parts)) for index, name, parts in self._calls]
        said = Said("".join(self._content), "", calls)
        self._content.clear()
        self._calls.clear()
        return said
