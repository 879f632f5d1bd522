"""How far a request's body goes: measured here, so that the parser gets no byte of what follows it, and not too many
chunks in one go; checked by the parser. Knows no connection."""

import re
from typing import Final

SLICE: Final = 8 << 10  # bytes of chunks parsed in one go: of the smallest, some milliseconds' worth
LINE_MAX: Final = 8 << 10  # bytes of a chunk's size with its extensions, or of all trailers

_LINE_END: Final = b"\r\n"
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})([ \t;].*)?")


class Sized:
    """A body whose size was told."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, data: bytearray) -> int:
        """How many bytes of `data` are next for the parser; 0 if more have to come first."""
        size = min(self._left, len(data))
        self._left -= size
        return size


class Chunked:
    """A body that comes in chunks."""

    def __init__(self) -> None:
        self._left = 0  # bytes of the chunk at hand, from its size to its line end
        self._last = False

    def take(self, data: bytearray) -> int:
        """The same, SLICE at most.

        Raises ValueError for what is no chunk, or has a line that does not end.
        """
        at, end = 0, min(len(data), SLICE)
        while at < end:
            if not self._left:
                self._left = 0 if self._last else self._next(data, at)
            if not self._left:
                break
            step = min(self._left, end - at)
            self._left -= step
            at += step
        return at

    def _next(self, data: bytearray, at: int) -> int:
        """Bytes of the chunk that begins there, here or not; 0 if its size is not all here."""
        line_end = _find(data, _LINE_END, at)
        if line_end < 0:
            return 0
        found = _SIZE.fullmatch(data, at, line_end)
        if found is None:
            raise ValueError("no chunk begins here")
        if size := int(found[1], 16):
            return line_end + size + 2 * len(_LINE_END) - at
        trailers_end = _find(data, 2 * _LINE_END, line_end)
        self._last = trailers_end >= 0
        return trailers_end + 2 * len(_LINE_END) - at if self._last else 0


def _find(data: bytearray, mark: bytes, at: int) -> int:
    """Where it is; -1 if it may still come."""
    found = data.find(mark, at, at + LINE_MAX)
    if found < 0 and len(data) - at >= LINE_MAX:
        raise ValueError("a line without an end")
    return found
