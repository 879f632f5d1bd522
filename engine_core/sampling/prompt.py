"""Log probabilities of prompts: of a step's positions on the device, and from there in portions for the wire.

Nothing here waits for the device before `portions` is called. Knows no requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from engine_core.sampling.logprobs import measure, ranks_of
from protocol.prompt_logprobs import PromptLogprobs, numbers_of

PORTION_NUMBERS: Final = 10_000  # in one message's part: who shows it is busy with it for some milliseconds


@dataclass(frozen=True, slots=True)
class Scored:
    """Of n positions, maybe of several prompts; k alternatives each, best first. Log probabilities are fp64."""

    logprobs: torch.Tensor  # [n]
    ranks: torch.Tensor  # [n] int64
    top_ids: torch.Tensor  # [n, k] int64
    top_logprobs: torch.Tensor  # [n, k]; -inf where there is no further alternative

    def to_host(self) -> "Scored":
        """Starts the copy from a GPU without waiting for it."""
        return Scored(*map(_to_host, (self.logprobs, self.ranks, self.top_ids, self.top_logprobs)))

    def portions(self, start: int, positions: range, top: int) -> list[PromptLogprobs]:
        """For the wire, rows `start` and on: those of one prompt's `positions`. Call it on the host's copy."""
        top = min(top, self.top_ids.shape[1])
        step = max(1, PORTION_NUMBERS // numbers_of(1, top))
        found = []
        for first in range(0, len(positions), step):
            rows = slice(start + first, start + min(first + step, len(positions)))
            found.append(
                PromptLogprobs(
                    positions[first],
                    top,
                    _bytes(self.logprobs[rows], "<f8"),
                    _bytes(self.ranks[rows], "<u4"),
                    _bytes(self.top_ids[rows, :top], "<u4"),
                    _bytes(self.top_logprobs[rows, :top], "<f8"),
                )
            )
        return found


def score(scores: torch.Tensor, tokens: torch.Tensor, top: int, room: torch.Tensor) -> Scored:
    """Of `tokens[i]` and of the `top` likeliest tokens under row i. Arguments as in `measure`."""
    found = measure(scores, tokens, top, room)
    return Scored(found.logprobs, ranks_of(scores, tokens), found.top_ids, found.top_logprobs)


def joined(parts: Sequence[Scored]) -> Scored:
    """One after the other."""
    columns = zip(*((part.logprobs, part.ranks, part.top_ids, part.top_logprobs) for part in parts), strict=True)
    return Scored(*map(torch.cat, columns))


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _bytes(tensor: torch.Tensor, kind: str) -> bytes:
    array: NDArray[np.generic] = tensor.numpy()
    return array.astype(kind).tobytes()
