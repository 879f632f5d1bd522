"""Repetition, frequency and presence penalties: what a request said so far makes it less likely to be said again.

Only tokens that occurred are touched, so what is kept per request is its distinct tokens and their counts, not a row as
wide as the vocabulary: a few kilobytes, and only for requests that ask for a penalty. Semantics as vLLM's: repetition
over prompt and output, frequency and presence over the output alone, in this order.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine_core.request import Request
from engine_core.sampling.transfer import to_device

SMALLEST = float(np.finfo(np.float32).tiny)  # a penalty that rounded to 0 would turn -inf into NaN


class TokenCounts:
    """The distinct tokens of one request, in order of first sight, and how often each occurs in the output."""

    __slots__ = ("_counts", "_folded", "_ids", "_places", "_size")

    def __init__(self, prompt: Sequence[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._size = len(self._places)
        self._folded = len(prompt)
        self._ids = np.zeros(self._size + 64, np.int64)
        self._ids[: self._size] = list(self._places)
        self._counts = np.zeros(self._size + 64, np.float32)

    @property
    def ids(self) -> NDArray[np.int64]:
        """[size], each once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """[size], occurrences in the output."""
        return self._counts[: self._size]

    def fold(self, tokens: Sequence[int]) -> None:
        """Counts what `tokens`, prompt and output together, gained since the last call. The one place where output
        enters the counts."""
        for token in tokens[self._folded :]:
            place = self._places.setdefault(token, self._size)
            if place == self._size:
                self._append(token)
            self._counts[place] += 1.0
        self._folded = len(tokens)

    def _append(self, token: int) -> None:
        if self._size == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[self._size] = token
        self._size += 1


class Penalties:
    """The counts of those slots whose requests have a penalty."""

    def __init__(self) -> None:
        self._counts: dict[int, TokenCounts] = {}  # by slot

    def admit(self, request: Request) -> None:
        """The slot is this request's now. Counts are rebuilt from its tokens, whatever was there."""
        if request.sampling.penalized:
            self._counts[request.slot] = TokenCounts(request.tokens[: request.prompt_len])
        else:
            self._counts.pop(request.slot, None)

    def apply(self, scores: torch.Tensor, rows: Sequence[int], requests: Sequence[Request]) -> None:
        """Changes `scores[rows[i]]` by the penalties of `requests[i]`, in place. `scores` [R, W] is fp32, dense."""
        places, counts, knobs, sizes = [], [], [], []
        for row, request in zip(rows, requests, strict=True):
            seen = self._counts[request.slot]
            seen.fold(request.tokens)
            sampling = request.sampling
            places.append(seen.ids + row * scores.shape[1])
            counts.append(seen.counts)
            knobs.append(
                (max(sampling.repetition_penalty, SMALLEST), sampling.frequency_penalty, sampling.presence_penalty)
            )
            sizes.append(len(seen.ids))
        device = scores.device
        at = to_device(np.concatenate(places), device)
        count = to_device(np.concatenate(counts), device)
        repetition, frequency, presence = to_device(
            np.repeat(np.array(knobs, np.float32), sizes, axis=0), device
        ).unbind(-1)
        flat = scores.view(-1)
        value = flat[at]
        value = torch.where(value > 0, value / repetition, value * repetition)
        value -= frequency * count
        value -= presence * (count > 0)
        flat[at] = value
