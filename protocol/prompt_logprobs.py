"""Log probabilities of a prompt's tokens as they travel: as arrays, because a long prompt and its alternatives are
millions of numbers, which as objects would take ten times the memory. Knows nothing of who computes or shows them."""

import struct
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from protocol.sampling import TopLogprobs

NO_MORE: Final = float("-inf")  # in the place of an alternative that is not there
_REAL: Final = 8  # bytes
_WHOLE: Final = 4


class PromptLogprob(NamedTuple):
    """Of one position: the token's own, and the likeliest ones, best first."""

    logprob: float
    rank: int  # 1 is the likeliest token; equally likely ones share a rank
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


class PromptLogprobs(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Natural-log probabilities at positions `pos`, `pos + 1`, … of a prompt, given the tokens before them. Position 0
    has none.

    The arrays are little-endian. Of n positions: `logprobs` [n] float64 and `ranks` [n] uint32 of their own tokens, and
    of the `top` likeliest tokens `top_ids` [n, top] uint32 and `top_logprobs` [n, top] float64.
    """

    pos: Annotated[int, Meta(ge=1, lt=2**31)]
    top: TopLogprobs
    logprobs: bytes
    ranks: bytes
    top_ids: bytes = b""
    top_logprobs: bytes = b""

    def __post_init__(self) -> None:
        count = self.count
        sizes = (len(self.logprobs), len(self.ranks), len(self.top_ids), len(self.top_logprobs))
        if sizes != (count * _REAL, count * _WHOLE, count * self.top * _WHOLE, count * self.top * _REAL):
            raise ValueError("arrays of different lengths")

    @property
    def count(self) -> int:
        """Positions."""
        return len(self.logprobs) // _REAL

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.pos + self.count

    @property
    def numbers(self) -> int:
        return numbers_of(self.count, self.top)

    def since(self, pos: int) -> "PromptLogprobs":
        """What is left of it from position `pos` on, which is one of its own."""
        skipped = pos - self.pos
        return PromptLogprobs(
            pos,
            self.top,
            self.logprobs[skipped * _REAL :],
            self.ranks[skipped * _WHOLE :],
            self.top_ids[skipped * self.top * _WHOLE :],
            self.top_logprobs[skipped * self.top * _REAL :],
        )

    def entries(self, top: int) -> Iterator[PromptLogprob]:
        """One per position, with at most `top` alternatives."""
        count, width = self.count, self.top
        logprobs = struct.unpack(f"<{count}d", self.logprobs)
        ranks = struct.unpack(f"<{count}I", self.ranks)
        top_ids = struct.unpack(f"<{count * width}I", self.top_ids)
        top_logprobs = struct.unpack(f"<{count * width}d", self.top_logprobs)
        shown = min(top, width)
        for row in range(count):
            found = top_logprobs[row * width : row * width + shown]
            if found and found[-1] == NO_MORE:
                found = found[: found.index(NO_MORE)]
            ids = top_ids[row * width : row * width + len(found)]
            yield PromptLogprob(logprobs[row], ranks[row], ids, found)


def numbers_of(positions: int, top: int) -> int:
    """How many numbers `positions` are with `top` alternatives each."""
    return positions * (2 + 2 * top)
