"""Which tokens a request forbids or favours: allowed ids, bias, bad words, and no end before `min_tokens`.

Semantics as vLLM's: a bad word's last token is forbidden where the output ends in the word's other tokens; the ends of
sequence and the stop tokens are forbidden while the output is shorter than `min_tokens`, also under `ignore_eos`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine_core.request import Request
from engine_core.sampling.transfer import to_device
from protocol.sampling import SamplingParams

FORBIDDEN = -torch.inf


def edits(sampling: SamplingParams) -> bool:
    """True if the request changes single logits."""
    return bool(
        sampling.allowed_token_ids is not None or sampling.logit_bias or sampling.bad_words or sampling.min_tokens
    )


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """One request's, with the ids on the device."""

    allowed: torch.Tensor | None  # [a] int64
    favoured: torch.Tensor  # [b] int64, each once
    biases: torch.Tensor  # [b] fp32
    ends: torch.Tensor  # [e] int64: forbidden before min_tokens

    @classmethod
    def of(cls, sampling: SamplingParams, eos_token_ids: Sequence[int], device: torch.device) -> "LogitEdits":
        def ids(tokens: Sequence[int]) -> torch.Tensor:
            return torch.tensor(tokens, dtype=torch.int64, device=device)

        bias = dict(sampling.logit_bias)
        return cls(
            allowed=None if sampling.allowed_token_ids is None else ids(sampling.allowed_token_ids),
            favoured=ids(list(bias)),
            biases=torch.tensor(list(bias.values()), dtype=torch.float32, device=device),
            ends=ids([*eos_token_ids, *sampling.stop_token_ids]),
        )

    def apply(self, row: torch.Tensor, request: Request) -> None:
        """Changes one row of logits, [W] fp32, in place."""
        if self.allowed is not None:
            kept = row[self.allowed]
            row.fill_(FORBIDDEN)
            row[self.allowed] = kept
        if len(self.favoured):
            row[self.favoured] += self.biases
        if forbidden := completed_words(request):
            row[to_device(np.array(forbidden, np.int64), row.device)] = FORBIDDEN
        if request.out_len < request.sampling.min_tokens and len(self.ends):
            row[self.ends] = FORBIDDEN


def completed_words(request: Request) -> list[int]:
    """Tokens that would complete a bad word after the output so far."""
    if not request.sampling.bad_words:
        return []
    longest = max(len(word) for word in request.sampling.bad_words)
    tail = tuple(request.tokens[max(request.prompt_len, len(request.tokens) - longest) :])
    return [word[-1] for word in request.sampling.bad_words if ends_with(tail, word[:-1])]


def ends_with(tail: tuple[int, ...], end: tuple[int, ...]) -> bool:
    return len(tail) >= len(end) and tail[len(tail) - len(end) :] == end
