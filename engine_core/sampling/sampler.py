"""Chooses the next token of every row of logits, each by its own request's parameters.

A token is a function of its request alone: seed, choice, position and logits give the same token among any neighbours,
in any row of the batch, after a preemption or in another process. Order of events, as vLLM's: fp32; grammars; allowed
ids, bias, bad words, min_tokens; penalties; greedy rows take the highest, the lowest id among equals; the others draw
(engine_core.sampling.draw).

Nothing here waits for the device, but for log probabilities, which are the host's: what decides is known to the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import torch
from numpy.typing import NDArray

from engine_core.request import Request
from engine_core.sampling import noise
from engine_core.sampling.allowed import Allowed, Limits, MaskSource
from engine_core.sampling.broken import highest, mend
from engine_core.sampling.candidates import padded
from engine_core.sampling.draw import COLDEST, Draws, draw
from engine_core.sampling.edits import LogitEdits, edits
from engine_core.sampling.logprobs import token_logprobs
from engine_core.sampling.penalties import Penalties
from engine_core.sampling.prompt import Scored, joined, score
from engine_core.sampling.transfer import to_device
from protocol.messages import TokenLogprobs
from protocol.sampling import SamplingParams


class Trait(IntFlag):
    """What a request needs beyond the highest logit."""

    RANDOM = 1
    EDITED = 2
    PENALIZED = 4
    LOGPROBS = 8
    CONSTRAINED = 16


@dataclass(slots=True)
class SampledTokens:
    """One step's tokens, in the order of the requests."""

    tokens: torch.Tensor  # [R] int64, on the device
    logprobs: list[TokenLogprobs | None] | None  # None if no request asked
    withheld: tuple[int, ...] = ()  # rows whose token is none: what it may be is not known yet


class Sampler:
    """Parameters lie in arrays indexed by slot, filled once per request; a step picks its rows out of them."""

    def __init__(
        self,
        vocab_size: int,
        max_num_seqs: int,
        eos_token_ids: Sequence[int],
        device: torch.device,
        masks: MaskSource | None = None,
    ) -> None:
        """Without `masks` no request may have a grammar."""
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._device = device

        self._traits = np.zeros(max_num_seqs, np.uint8)
        self._coldness = np.ones(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int64)
        self._top_p = np.ones(max_num_seqs, np.float64)
        self._min_p = np.zeros(max_num_seqs, np.float64)
        self._streams = np.zeros(max_num_seqs, np.uint64)
        self._edits: dict[int, LogitEdits] = {}  # by slot
        self._penalties = Penalties()
        self._limits = None if masks is None else Limits(masks, vocab_size, eos_token_ids, device)

        # Kept for good: at 152k columns a step would spend more time on page faults than on sampling. Not touched, and
        # so not in memory, before a step needs as many rows.
        shape = (max_num_seqs, padded(vocab_size))
        self._scores = torch.empty(shape, dtype=torch.float32, device=device)
        self._room = torch.empty(shape, dtype=torch.float32, device=device)

    def admit(self, request: Request) -> None:
        """The request has just got its slot: whatever the slot held before is forgotten."""
        slot, sampling = request.slot, request.sampling
        traits = traits_of(sampling)
        self._traits[slot] = traits
        self._penalties.admit(request)
        self._edits.pop(slot, None)
        if self._limits is not None and traits & Trait.CONSTRAINED:
            self._limits.admit(request)
        if traits & Trait.EDITED:
            self._edits[slot] = LogitEdits.of(sampling, self._eos_token_ids, self._device)
        if traits & Trait.RANDOM:
            self._coldness[slot] = 1.0 / max(sampling.temperature, COLDEST)
            self._top_k[slot] = sampling.top_k if sampling.top_k < self._vocab_size else 0
            self._top_p[slot] = sampling.top_p
            self._min_p[slot] = sampling.min_p
            self._streams[slot] = noise.stream(request.seed, request.choice)

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> SampledTokens:
        """The next token of each request. Logits [R, V] of any float type, unchanged on return; row i is for request i,
        whose `tokens` are all that precedes the token."""
        logits = logits.detach()
        slots = np.fromiter((request.slot for request in requests), np.int64, len(requests))
        traits = self._traits[slots]
        if self._device.type == "cpu" and logits.dtype == torch.float32 and not traits.any():
            tokens, peaks = highest(logits)  # spares the copy
            if bool(peaks.isfinite().all()):
                return SampledTokens(tokens, None)
        scores = self._copied(logits)
        allowed = self._allowed(requests, np.flatnonzero(traits & Trait.CONSTRAINED))
        if allowed is not None:
            allowed.apply(scores)
        for row in np.flatnonzero(traits & Trait.EDITED).tolist():
            self._edits[requests[row].slot].apply(scores[row, : self._vocab_size], requests[row])
        if penalized := np.flatnonzero(traits & Trait.PENALIZED).tolist():
            self._penalties.apply(scores, penalized, [requests[row] for row in penalized])
        eos = self._eos_token_ids[0] if self._eos_token_ids else 0
        tokens, peaks, final = mend(scores, logits, requests, eos, {} if allowed is None else allowed.by_row())
        if len(rows := np.flatnonzero(traits & Trait.RANDOM)):
            at = to_device(rows, self._device)
            drawn = self._draw(scores, peaks[at], rows, slots[rows], requests)
            tokens[at] = torch.where(final[at], tokens[at], drawn)
        sampled = SampledTokens(tokens, None, () if allowed is None else allowed.withheld)
        if asking := np.flatnonzero(traits & Trait.LOGPROBS).tolist():
            sampled.logprobs = self._logprobs_of(asking, logits, tokens, requests)
        return sampled

    def _allowed(self, requests: Sequence[Request], rows: NDArray[np.int64]) -> Allowed | None:
        """What the grammars of these rows leave; None if there are no such rows."""
        return self._limits.of(requests, rows) if self._limits is not None and len(rows) else None

    def _logprobs_of(
        self, rows: list[int], logits: torch.Tensor, tokens: torch.Tensor, requests: Sequence[Request]
    ) -> list[TokenLogprobs | None]:
        """Of the tokens of these rows; nothing for the others."""
        tops = [requests[row].sampling.logprobs or 0 for row in rows]
        if len(rows) == len(requests):
            return [*self.logprobs(logits, tokens, tops)]
        logprobs: list[TokenLogprobs | None] = [None] * len(requests)
        for row, entry in zip(rows, self.logprobs(logits[rows], tokens[rows], tops), strict=True):
            logprobs[row] = entry
        return logprobs

    def logprobs(self, logits: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int]) -> list[TokenLogprobs]:
        """Of `tokens[i]` and of the `tops[i]` likeliest under `logits[i]`, as the model gave them. Logits [n, V] of
        any float type, tokens [n] int64, n no more than sequences."""
        scores = self._copied(logits.detach())
        return token_logprobs(scores, tokens, tops, self._room[: len(scores)])

    def score(self, logits: torch.Tensor, tokens: torch.Tensor, top: int) -> Scored:
        """The same for positions of prompts, of which there may be any number but none, with `top` alternatives for
        all."""
        parts = []
        step = len(self._scores)
        for start in range(0, len(logits), step):
            scores = self._copied(logits[start : start + step].detach())
            parts.append(score(scores, tokens[start : start + step], top, self._room[: len(scores)]))
        return joined(parts)

    def _copied(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as fp32 [R, W] that may be written to: as wide as BLOCK wants it, -inf beyond the vocabulary."""
        scores = self._scores[: len(logits)]
        scores[:, : self._vocab_size].copy_(logits)
        scores[:, self._vocab_size :].fill_(-torch.inf)
        return scores

    def _draw(
        self,
        scores: torch.Tensor,
        peaks: torch.Tensor,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        requests: Sequence[Request],
    ) -> torch.Tensor:
        """Drawn tokens of `rows`, whose highest scores are `peaks`."""
        positions = np.fromiter((requests[row].out_len for row in rows), np.uint64, len(rows))
        draws = Draws(
            peaks,
            rows,
            self._coldness[slots],
            self._top_k[slots],
            self._top_p[slots],
            self._min_p[slots],
            noise.uniform(self._streams[slots], positions),
        )
        return draw(scores, draws, self._room[: len(scores)])


def traits_of(sampling: SamplingParams) -> int:
    return (
        (0 if sampling.greedy else Trait.RANDOM)
        | (Trait.EDITED if edits(sampling) else 0)
        | (Trait.PENALIZED if sampling.penalized else 0)
        | (0 if sampling.logprobs is None else Trait.LOGPROBS)
        | (0 if sampling.grammar is None else Trait.CONSTRAINED)
    )
