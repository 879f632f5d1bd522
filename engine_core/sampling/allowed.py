"""Which tokens a request's grammar and its other parameters leave together.

The output may end where it is a sentence: ends of sequence and stop tokens come to what the grammar allows there, but
not before `min_tokens`, and ends of sequence not under `ignore_eos`. An output that nothing can prolong ends whatever
these say; that is seen before it gets here. A stop token that is text to the grammar is text, and ends the output where
the client wants it to. Bad words and allowed ids take from what the grammar allows; if they leave nothing, the output
ends if it may, and else the request fails: no token is ever chosen that the grammar forbids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine_core.grammar.followings import Mask
from engine_core.request import Request
from engine_core.sampling.candidates import padded
from engine_core.sampling.edits import completed_words
from engine_core.sampling.transfer import to_device

Bits = NDArray[np.uint8]  # bit i of byte b is token 8 * b + i


class MaskSource(Protocol):
    """Follows the grammars of requests."""

    def open(self, request: Request) -> None:
        """The request has just got its slot."""

    def wait(self, requests: Sequence[Request]) -> list[Mask | None]:
        """What each may have as its next token; None if that is not known in time, or if it may have none."""

    def exhausted(self, request: Request) -> None:
        """Nothing of what its grammar allows is left by its own parameters."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Of the rows of a step that are held to a grammar, n of them get a token."""

    rows: NDArray[np.int64]  # [n], ascending
    tokens: torch.Tensor  # [n, W] bool: what each may have, at least one
    withheld: tuple[int, ...] = ()  # rows that get none

    def apply(self, scores: torch.Tensor) -> None:
        """Forbids the rest, in place. `scores` [R, W] fp32."""
        if len(self.rows) == len(scores):
            scores.masked_fill_(~self.tokens, -torch.inf)
        elif len(self.rows):
            at = to_device(self.rows, scores.device)
            scores[at] = scores[at].masked_fill_(~self.tokens, -torch.inf)

    def by_row(self) -> dict[int, torch.Tensor]:
        """Each row's, [W]."""
        return dict(zip(self.rows.tolist(), self.tokens, strict=True))


class Limits:
    """Everything that limits the tokens of requests with a grammar, by slot."""

    def __init__(self, masks: MaskSource, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device) -> None:
        self._masks = masks
        self._vocab_size = vocab_size
        self._eos = frozenset(eos_token_ids)
        self._device = device
        self._ids: dict[int, Bits] = {}  # of the allowed ids, where a request names some

    def admit(self, request: Request) -> None:
        """The request has just got its slot, and has a grammar."""
        self._ids.pop(request.slot, None)
        if request.sampling.allowed_token_ids is not None:
            self._ids[request.slot] = self._none()
            allow(self._ids[request.slot], request.sampling.allowed_token_ids)
        self._masks.open(request)

    def of(self, requests: Sequence[Request], rows: NDArray[np.int64]) -> Allowed:
        """`rows` are those of `requests` that are held to a grammar. Waits for their masks, a little."""
        held = [requests[row] for row in rows.tolist()]
        bits, kept, withheld = [], [], []
        for row, request, mask in zip(rows.tolist(), held, self._masks.wait(held), strict=True):
            left = None if mask is None else self._left(request, mask)
            if left is None:
                withheld.append(row)
            else:
                bits.append(left)
                kept.append(row)
        tokens = spread(np.array(bits, np.uint8).reshape(len(bits), padded(self._vocab_size) // 8), self._device)
        return Allowed(np.array(kept, np.int64), tokens, tuple(withheld))

    def _left(self, request: Request, mask: Mask) -> Bits | None:
        """What the grammar and everything else leave; None if that is nothing."""
        bits = self._none()
        size = -(-self._vocab_size // 8)
        bits[:size] = mask.bits[:size]
        if over := self._vocab_size % 8:  # the tokenizer may know more tokens than there are logits
            bits[size - 1] &= (1 << over) - 1
        sampling = request.sampling
        if request.out_len < sampling.min_tokens:
            forbid(bits, [*self._eos, *sampling.stop_token_ids])
        elif mask.may_end:
            allow(bits, [*(() if sampling.ignore_eos else self._eos), *sampling.stop_token_ids])
        forbid(bits, completed_words(request))
        if (ids := self._ids.get(request.slot)) is not None:
            bits &= ids
        if bits.any():
            return bits
        self._masks.exhausted(request)
        return None

    def _none(self) -> Bits:
        return np.zeros(padded(self._vocab_size) // 8, np.uint8)


def allow(bits: Bits, tokens: Sequence[int]) -> None:
    for token in tokens:
        bits[token >> 3] |= 1 << (token & 7)


def forbid(bits: Bits, tokens: Sequence[int]) -> None:
    for token in tokens:
        bits[token >> 3] &= ~(1 << (token & 7)) & 0xFF


def spread(bits: Bits, device: torch.device) -> torch.Tensor:
    """[n, W / 8] to [n, W] bool, on the device."""
    if device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits, axis=-1, bitorder="little").view(np.bool_))
    return unpacked(to_device(bits, device))


def unpacked(bits: torch.Tensor) -> torch.Tensor:
    """The same, of bits that are on the device."""
    return ((bits[:, :, None] >> torch.arange(8, device=bits.device)) & 1).bool().flatten(1)
