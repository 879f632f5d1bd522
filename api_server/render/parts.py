"""One choice's answer as parts - reasoning, text, calls - in the order in which the model wrote them: what the APIs
that have items or content blocks are rendered from.

The parts do not depend on how tokens were grouped into pieces. Knows no wire shape.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from api_server.parsing import CallDelta, Reader, Said
from api_server.render.reading import Reading
from api_server.text import Piece
from protocol.messages import FinishReason

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Part:
    """`texts` are all of it so far; a call's are its arguments, and `name` is the function's."""

    index: int  # within the answer
    kind: Kind
    name: str = ""
    texts: list[str] = field(default_factory=list)
    complete: bool = False  # closed, and not because the answer reached its limit

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Opened(NamedTuple):
    part: Part  # as it begins, without text


class Grown(NamedTuple):
    part: Part
    text: str


class Closed(NamedTuple):
    part: Part


Change = Opened | Grown | Closed


class Parts:
    """Grows with the pieces of one choice. One part at a time is open, and each is closed for good.

    An answer that says nothing at all is one empty text, because clients look at the first part.
    """

    def __init__(self, reader: Reader | None) -> None:
        """Without a reader, everything is text."""
        self._reading: Final = None if reader is None else Reading(reader)
        self._open: Part | None = None
        self._changes: list[Change] = []
        self._call = -1  # the reader's index of the call that is open, or was last
        self.all: Final[list[Part]] = []

    @property
    def called(self) -> bool:
        """Some function is to be called."""
        return self._call >= 0

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._reading is None else self._reading.reasoning_tokens

    def feed(self, piece: Piece) -> list[Change]:
        """What changes with the piece, in order. A piece with log probabilities grows a text even by nothing: they
        are told with it."""
        self._changes = []
        if self._reading is not None:
            for said in self._reading.each(piece):
                self._hear(said)
        elif (text := piece.text) or piece.logprobs:
            self._grow("text", text)
        if piece.finish is not None:
            self._end(piece.finish)
        return self._changes

    def _hear(self, said: Said) -> None:
        """What one token said. Only calls that begin come after the text beside them."""
        if said.reasoning:
            self._grow("reasoning", said.reasoning)
        going_on = [call for call in said.calls if call.index == self._call]
        for call in going_on:
            self._call_on(call)
        if said.content:
            self._grow("text", said.content)
        for call in said.calls:
            if call not in going_on:
                self._call_on(call)

    def _call_on(self, call: CallDelta) -> None:
        if call.index != self._call:
            self._call = call.index
            self._begin(Part(len(self.all), "call", call.name or ""))
        part = self._open
        if part is not None and call.arguments:
            part.texts.append(call.arguments)
            self._changes.append(Grown(part, call.arguments))

    def _grow(self, kind: Kind, text: str) -> None:
        part = self._open
        if part is None or part.kind != kind:
            part = self._begin(Part(len(self.all), kind))
        part.texts.append(text)
        self._changes.append(Grown(part, text))

    def _begin(self, part: Part) -> Part:
        self._close()
        self._open = part
        self.all.append(part)
        self._changes.append(Opened(Part(part.index, part.kind, part.name)))
        return part

    def _close(self, *, complete: bool = True) -> None:
        if self._open is not None:
            self._open.complete = complete
            self._changes.append(Closed(self._open))
            self._open = None

    def _end(self, finish: FinishReason) -> None:
        if not self.all:
            self._begin(Part(0, "text"))
        self._close(complete=finish is not FinishReason.LENGTH)
