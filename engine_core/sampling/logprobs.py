"""Log-probabilities as the API reports them: natural, of the model's own logits, before any edit, penalty or
temperature (vLLM's `raw_logprobs`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine_core.sampling.candidates import ranked, widest
from engine_core.sampling.draw import weigh
from protocol.messages import TokenLogprobs
from protocol.sampling import MAX_TOP_LOGPROBS

LOWEST = -9999.0  # stands for -inf, which JSON lacks; the number is vLLM's
WIDTH = 2 * MAX_TOP_LOGPROBS  # candidates looked at; the same for all, so that ties fall alike in any batch


@dataclass(frozen=True, slots=True)
class Measured:
    """Log probabilities at n positions, on the device of their scores. Alternatives come best first."""

    logprobs: torch.Tensor  # [n] fp64, the tokens' own
    top_ids: torch.Tensor  # [n, k] int64
    top_logprobs: torch.Tensor  # [n, k] fp64; -inf where there is no further alternative


def token_logprobs(
    scores: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int], room: torch.Tensor
) -> list[TokenLogprobs]:
    """Of `tokens[i]` and of the `tops[i]` likeliest tokens of row i, as objects. Arguments and results as in
    `measure`; a list may be shorter than asked for."""
    found = measure(scores, tokens, max(tops, default=0), room)
    counts = (found.top_logprobs > -torch.inf).sum(-1).tolist()
    return [
        TokenLogprobs(logprob, ids[: min(top, count)], logprobs[: min(top, count)])
        for logprob, ids, logprobs, top, count in zip(
            found.logprobs.tolist(), found.top_ids.tolist(), found.top_logprobs.tolist(), tops, counts, strict=True
        )
    ]


def measure(scores: torch.Tensor, tokens: torch.Tensor, top: int, room: torch.Tensor) -> Measured:
    """Of `tokens[i]` and of the `top` likeliest tokens of row i, fewer only if the rows are narrower.

    `scores` [n, W] are the model's logits in fp32, W a multiple of BLOCK; `room` is scratch of that shape; tokens [n]
    int64. NaN counts as -inf. Tokens of -inf are no alternatives. A row whose highest logit is infinite is no
    distribution: all its tokens get LOWEST. Does not wait for a GPU.
    """
    peak = scores.amax(-1)
    if scores.device.type != "cpu" or bool(peak.isnan().any()):
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        peak = scores.amax(-1)
    rows = torch.arange(len(scores), device=scores.device)
    mass = weigh(scores, rows, peak, torch.ones_like(peak), room)[1][:, -1]
    total = (peak.double() + mass.log())[:, None]  # log of the sum of exponentials
    chosen = _reported(scores.gather(-1, tokens[:, None]), total)[:, 0]
    if not top:
        nothing = chosen.new_empty((len(scores), 0))
        return Measured(chosen, nothing.long(), nothing)
    values, ids = ranked(*widest(scores, WIDTH))
    logprobs = torch.where(values > -torch.inf, _reported(values, total), -torch.inf)
    return Measured(chosen, ids[:, :top], logprobs[:, :top])


def ranks_of(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One more than how many scores of row i [n, W] are above that of `tokens[i]`: [n] int64. A NaN is below all."""
    own = scores.gather(-1, tokens[:, None]).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if scores.device.type != "cpu":
        return (scores > own).sum(-1) + 1
    # NumPy counts 256 rows of 152k in 25 ms, torch in two seconds.
    return torch.from_numpy(np.count_nonzero(scores.numpy() > own.numpy(), axis=-1)) + 1


def _reported(scores: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Scores [n, k] over their rows' totals [n, 1], in fp64 so that two fp32 roundings don't add up."""
    return (scores.double() - total).nan_to_num(nan=LOWEST, neginf=LOWEST).clamp(min=LOWEST)
