"""Log-probabilities as the API reports them: natural, of the model's own logits, before any edit, penalty or
temperature (vLLM's `raw_logprobs`)."""

from collections.abc import Sequence

import torch

from engine_core.sampling.candidates import ranked, widest
from engine_core.sampling.draw import weigh
from protocol.messages import TokenLogprobs
from protocol.sampling import MAX_TOP_LOGPROBS

LOWEST = -9999.0  # stands for -inf, which JSON lacks; the number is vLLM's
WIDTH = 2 * MAX_TOP_LOGPROBS  # candidates looked at; the same for all, so that ties fall alike in any batch


def token_logprobs(
    scores: torch.Tensor, tokens: torch.Tensor, tops: Sequence[int], room: torch.Tensor
) -> list[TokenLogprobs]:
    """Of `tokens[i]` and of the `tops[i]` likeliest tokens of row i.

    `scores` [n, W] are the model's logits in fp32, W a multiple of BLOCK; `room` is scratch of that shape; tokens [n]
    int64. NaN counts as -inf. Tokens of -inf are not listed, so a list may be shorter than asked for. A row whose
    highest logit is infinite is no distribution: all its tokens get LOWEST.
    """
    peak = scores.amax(-1)
    if bool(peak.isnan().any()):
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        peak = scores.amax(-1)
    rows = torch.arange(len(scores), device=scores.device)
    mass = weigh(scores, rows, peak, torch.ones_like(peak), room)[1][:, -1]
    total = (peak.double() + mass.log())[:, None]  # log of the sum of exponentials
    chosen = reported(scores.gather(-1, tokens[:, None]), total)
    if not any(tops):
        return [TokenLogprobs(logprob, [], []) for (logprob,) in chosen]
    values, ids = ranked(*widest(scores, WIDTH))
    possible = (values > -torch.inf).sum(-1)
    counts = torch.tensor(tops, device=possible.device).minimum(possible).tolist()
    return [
        TokenLogprobs(logprob, row_ids[:count], row_values[:count])
        for (logprob,), row_ids, row_values, count in zip(
            chosen, ids.tolist(), reported(values, total), counts, strict=True
        )
    ]


def reported(scores: torch.Tensor, total: torch.Tensor) -> list[list[float]]:
    """Scores [n, k] over their rows' totals [n, 1], in fp64 so that two fp32 roundings don't add up."""
    logprobs = (scores.double() - total).nan_to_num(nan=LOWEST, neginf=LOWEST).clamp(min=LOWEST)
    lists: list[list[float]] = logprobs.tolist()
    return lists
