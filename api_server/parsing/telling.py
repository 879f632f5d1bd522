"""What a reader is about to say, collected while it goes through a piece of text. Knows no format."""

from typing import Final

from api_server.parsing import CallDelta, Said


class Telling:
    """Takes content and parts of calls in the order of the text, and joins them in time linear in their size. Of more
    than `max_calls` calls the later ones are left out."""

    __slots__ = ("_content", "_max_calls", "_parts", "calls")

    def __init__(self, max_calls: int | None) -> None:
        self._max_calls: Final = max_calls
        self._content: Final[list[str]] = []
        self._parts: Final[list[tuple[int, str | None, list[str]]]] = []  # call, name, pieces of the arguments
        self.calls = 0  # that are over

    def content(self, text: str) -> None:
        self._content.append(text)

    def call(self, name: str | None, arguments: str) -> None:
        """A part of the call that is going on, with its `name` if it is the first part."""
        if self._max_calls is not None and self.calls >= self._max_calls:
            return
        if name is None and self._parts and self._parts[-1][0] == self.calls:
            self._parts[-1][2].append(arguments)
        else:
            self._parts.append((self.calls, name, [arguments]))

    def said(self) -> Said:
        """Everything since the last time."""
        calls = [CallDelta(index, name, "".join(pieces)) for index, name, pieces in self._parts]
        said = Said("".join(self._content), "", calls)
        self._content.clear()
        self._parts.clear()
        return said
