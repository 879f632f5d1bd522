"""From pieces of text to the bytes of a response: one renderer per wire shape, all with the same four methods."""

from collections.abc import Iterator
from typing import Protocol

from api_server.schema.responses import Usage
from api_server.text import Piece


class Renderer(Protocol):
    """Renders one request's answer, streamed (head, chunks, tail) or in one piece (whole). Knows no socket."""

    def head(self) -> bytes:
        """What goes out before the first token; often nothing."""
        ...

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        """The events of one piece, which may be none. `usage`, the piece included, is there with
        continuous_usage_stats."""
        ...

    def tail(self, usage: Usage) -> bytes:
        """What follows the last chunk."""
        ...

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes | Iterator[bytes]:
        """The body of a response that does not stream, from one joined piece per sequence, by index. One that may be
        long comes in parts, which are made as they are asked for."""
        ...


class ResumableRenderer(Renderer, Protocol):
    """Of a shape whose streams can be numbered."""

    def openings(self, index: int) -> int:
        """How many of the next chunk's events belong before the sequence's first token."""
        ...
