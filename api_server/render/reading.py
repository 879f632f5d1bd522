"""What a choice's pieces say: content, reasoning and calls.

Text is read token by token, so that what was said by a token depends on the tokens up to it alone. Knows no wire
shape.
"""

from collections.abc import Iterator
from typing import Final

from api_server.parsing import CallDelta, Reader, Said
from api_server.text import Piece


class Reading:
    """Hears one choice. `calls` counts those that have begun."""

    def __init__(self, reader: Reader) -> None:
        self._reader: Final = reader
        self._tokens = 0
        self.calls = 0
        self.reasoning_tokens = 0  # up to the last one that added to the reasoning

    def each(self, piece: Piece) -> Iterator[Said]:
        """What each token says, and then what only the end made certain."""
        for text in piece.texts:
            self._tokens += 1
            if text:
                yield self._note(self._reader.feed(text))
        if piece.rest:
            yield self._note(self._reader.feed(piece.rest))
        if piece.finish is not None:
            yield self._note(self._reader.end())

    def hear(self, piece: Piece) -> Said:
        """All that the piece says. The parts of a call are joined to one."""
        heard = list(self.each(piece))
        return heard[0] if len(heard) == 1 else _joined(heard)

    def _note(self, said: Said) -> Said:
        if said.reasoning:
            self.reasoning_tokens = self._tokens
        for call in said.calls:
            self.calls = max(self.calls, call.index + 1)
        return said


def _joined(heard: list[Said]) -> Said:
    calls: dict[int, tuple[str | None, list[str]]] = {}
    for said in heard:
        for call in said.calls:
            _, arguments = calls.setdefault(call.index, (call.name, []))
            arguments.append(call.arguments)
    return Said(
        "".join(said.content for said in heard),
        "".join(said.reasoning for said in heard),
        [CallDelta(index, name, "".join(arguments)) for index, (name, arguments) in calls.items()],
    )
