"""Rows of scores that are no distribution, put right so that they give a token and do no harm to others.

NaN counts as -inf; +inf is certain; if nothing is left, because a request forbade every token, the model's likeliest
among the allowed ids; and if the logits themselves hold nothing, the end of the sequence. Under a grammar it is the
model's likeliest among what that allows, or the first of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from engine_core.request import Request
from engine_core.sampling.transfer import to_device

ByRow = Mapping[int, torch.Tensor]  # what grammars allow, [W] bool
LEAST = torch.finfo(torch.float32).min  # above -inf: what a grammar allows, though the model does not


def highest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's highest values: index [R] and value [R]; NaN counts as above all. On a CPU NumPy takes a
    twelfth of the time of torch's argmax, which is not vectorised."""
    index = torch.from_numpy(scores.numpy().argmax(-1)) if scores.device.type == "cpu" else scores.argmax(-1)
    return index, scores.gather(-1, index[:, None])[:, 0]


def mend(
    scores: torch.Tensor,
    logits: torch.Tensor,
    requests: Sequence[Request],
    eos: int,
    allowed: Mapping[int, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of edited `scores` [R, W] fp32, whose broken rows it overwrites: each row's likeliest token, that token's score,
    and whether the row was broken, so that the token is final; [R] each. `logits` [R, V] are what the model gave.

    A CPU is asked whether any row is broken, which is cheaper than to mend those that are not; a GPU is never asked.
    """
    if scores.device.type != "cpu":
        return _mended(scores, logits, requests, eos, allowed)
    tokens, peaks = highest(scores)
    broken = np.flatnonzero(~np.isfinite(peaks.numpy()))
    final = torch.zeros_like(peaks, dtype=torch.bool)
    if len(broken):
        some = torch.from_numpy(broken)
        part = scores[some]
        theirs = {place: allowed[row] for place, row in enumerate(broken.tolist()) if row in allowed}
        tokens[some], peaks[some], final[some] = _mended(
            part, logits[some], [requests[row] for row in broken.tolist()], eos, theirs
        )
        scores[some] = part
    return tokens, peaks, final


def _mended(
    scores: torch.Tensor,
    logits: torch.Tensor,
    requests: Sequence[Request],
    eos: int,
    allowed: Mapping[int, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    without_nan(scores, out=scores)
    tokens, peaks = highest(scores)
    tokens = torch.where(peaks.isneginf(), _last_resort(logits, requests, eos, allowed), tokens)
    final = ~peaks.isfinite()
    scores.masked_fill_(final[:, None], 0.0)
    return tokens, peaks.masked_fill(final, 0.0), final


def _last_resort(logits: torch.Tensor, requests: Sequence[Request], eos: int, allowed: ByRow) -> torch.Tensor:
    """Tokens [R] where a request's edits, or the model, left none."""
    raw = without_nan(logits.float())
    tokens, peaks = highest(raw)
    for row, request in enumerate(requests):
        if row in allowed:  # the allowed ids are in there already
            legal = allowed[row][: raw.shape[1]]
            among = raw[row].masked_fill(~legal, -torch.inf).masked_fill(raw[row].isneginf() & legal, LEAST)
            tokens[row], peaks[row] = among.argmax(), among.amax()
        elif request.sampling.allowed_token_ids is not None:
            ids = to_device(np.array(request.sampling.allowed_token_ids, np.int64), raw.device)
            among = raw[row, ids]
            tokens[row], peaks[row] = torch.take(ids, among.argmax()), among.amax()
    return torch.where(peaks.isneginf(), eos, tokens)


def without_nan(scores: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """NaN becomes -inf, infinities stay."""
    return torch.nan_to_num(scores, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf, out=out)
