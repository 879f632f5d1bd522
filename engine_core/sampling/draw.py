"""From scores and one uniform number per row to a token: temperature, top-k, top-p, min-p, inverse CDF.

Semantics as in transformers' generation: temperature; top-k keeps the k highest and what ties with the last of them;
top-p keeps, of what is left and in descending order, each token before which less than `top_p` of the mass lies; min-p
keeps what is at least `min_p` as likely as the likeliest.

A row's token depends on that row alone, bit for bit. So nothing here reduces over a whole row in one operation (torch
splits a single row's sum over threads, but not those of several rows): sums go over blocks in fp32, and from there on
in sequence in fp64. And the candidates a row is drawn from are ordered the same however many were looked at.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine_core.sampling.candidates import BLOCK, ranked, widest
from engine_core.sampling.transfer import to_device

WIDTHS = (64, 1024, 16384)  # candidates looked at on a CPU, until they suffice; nearly always the first do
WORTHWHILE = 8  # a full sort costs no more than finding the best eighth of a row first
AT_ONCE = 1 << 20  # candidates of all rows together, a bound on temporary memory
COLDEST = 1e-5  # lowest temperature that is not greedy; below, fp32 has no room for the differences (vLLM: 1e-2)


@dataclass(frozen=True, slots=True)
class Draws:
    """The rows to draw from and how, [n] each. All but the peaks is the host's, so that it decides without asking the
    device."""

    peak: torch.Tensor  # fp32, the row's highest score: finite
    rows: NDArray[np.int64]  # ascending
    coldness: NDArray[np.float32]  # 1 / temperature
    top_k: NDArray[np.int64]  # 0 is off
    top_p: NDArray[np.float64]  # 1 is off
    min_p: NDArray[np.float64]  # 0 is off
    uniform: NDArray[np.float64]  # [0, 1)

    def of(self, index: NDArray[np.int64]) -> "Draws":
        return Draws(
            self.peak[self.on(index)],
            self.rows[index],
            self.coldness[index],
            self.top_k[index],
            self.top_p[index],
            self.min_p[index],
            self.uniform[index],
        )

    def on(self, array: NDArray[np.generic]) -> torch.Tensor:
        """The array on the device of the scores."""
        return to_device(array, self.peak.device)


def draw(scores: torch.Tensor, draws: Draws, room: torch.Tensor) -> torch.Tensor:
    """Tokens [n] int64. `scores` [R, W] fp32 without NaN, W a multiple of BLOCK; `room` is scratch of that shape."""
    truncated = (draws.top_k > 0) | (draws.top_p < 1.0) | (draws.min_p > 0.0)
    if not truncated.any():
        return draw_whole(scores, draws, room)
    if truncated.all():
        return draw_truncated(scores, draws, room)
    tokens = torch.empty_like(draws.peak, dtype=torch.int64)
    for index, of in ((np.flatnonzero(truncated), draw_truncated), (np.flatnonzero(~truncated), draw_whole)):
        tokens[draws.on(index)] = of(scores, draws.of(index), room)
    return tokens


def weigh(
    scores: torch.Tensor, rows: torch.Tensor, peak: torch.Tensor, coldness: torch.Tensor, room: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """exp((score - peak) * coldness) of whole rows [n, W], and those summed up block by block [n, W / BLOCK] in fp64.
    The weights lie in `room` until the next call. `rows` ascend; `peak` and `coldness` [n] are theirs."""
    count = len(rows)
    weights = room[:count]
    if count == len(scores):
        torch.sub(scores, peak[:, None], out=weights)
    else:
        torch.index_select(scores, 0, rows, out=weights)
        weights.sub_(peak[:, None])
    weights.mul_(coldness[:, None]).exp_()
    return weights, weights.view(count, -1, BLOCK).sum(-1).double().cumsum(-1)


def draw_whole(scores: torch.Tensor, draws: Draws, room: torch.Tensor) -> torch.Tensor:
    """Inverse CDF over all tokens, in order of their ids: first the block, then the token in it."""
    weights, mass = weigh(scores, draws.on(draws.rows), draws.peak, draws.on(draws.coldness), room)
    target = draws.on(draws.uniform) * mass[:, -1]
    block = first_above(mass, target)
    target -= torch.where(block > 0, mass.gather(-1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inner = weights.view(len(weights), -1, BLOCK)[torch.arange(len(block), device=block.device), block]
    inner = inner.double().cumsum(-1)
    # The block's fp32 sum may lie above the fp64 one, and the target between them.
    target = torch.minimum(target, torch.nextafter(inner[:, -1], torch.zeros_like(target)))
    return block * BLOCK + first_above(inner, target)


def draw_truncated(scores: torch.Tensor, draws: Draws, room: torch.Tensor) -> torch.Tensor:
    """Inverse CDF over what top-k, top-p and min-p leave. On a CPU among the best 64 tokens if they suffice, else among
    more, in the end over a full sort of the row; elsewhere asking whether they suffice would cost more than the sort.
    However many are looked at, the token is the same."""
    total = torch.ones_like(draws.peak, dtype=torch.float64)
    whole = np.flatnonzero((draws.top_k == 0) & (draws.top_p < 1.0))
    if len(whole):
        part = draws.of(whole)
        mass = weigh(scores, draws.on(part.rows), part.peak, draws.on(part.coldness), room)[1]
        total[draws.on(whole)] = mass[:, -1]
    tokens = torch.empty_like(draws.peak, dtype=torch.int64)
    settled = np.zeros(len(draws.rows), np.bool_)
    everything = scores.shape[1]
    widths = [width for width in WIDTHS if width * WORTHWHILE <= everything] if scores.device.type == "cpu" else []
    for width in (*widths, everything):
        step = max(1, AT_ONCE // width)
        fitting = np.flatnonzero(~settled & ((draws.top_k < width) | (width == everything)))
        for index in np.split(fitting, range(step, len(fitting), step)):
            at, part = draws.on(index), draws.of(index)
            values, ids = ranked(*widest(scores, width, draws.on(part.rows)))
            tokens[at], sure = choose(values, ids, part, total[at])
            settled[index] = True if width == everything else sure.numpy()
        if settled.all():
            break
    return tokens


def choose(
    values: torch.Tensor, ids: torch.Tensor, draws: Draws, total: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws among the best candidates [n, K], ranked. `total` [n] is the weight of the whole row, where top-p needs it.

    Returns tokens [n] and whether they are sure: False where what is kept reaches into the tokens that tie with the
    last candidate, of which some may be missing.
    """
    count = values.shape[1]
    weights = ((values - draws.peak[:, None]) * draws.on(draws.coldness)[:, None]).exp().double()
    mass = weights.cumsum(-1)
    top_k, top_p = draws.on(draws.top_k), draws.on(draws.top_p)
    limited = top_k > 0
    least = values.gather(-1, (top_k.clamp(1, count) - 1)[:, None])
    kept = (values >= least) | ~limited[:, None]
    ending = (values == values[:, -1:]) & (weights > 0.0)  # what weighs nothing may as well be missing
    settled = ~(kept & ending).any(-1) | ~limited  # a top-k set with unknown members has no total
    total = torch.where(limited, mass.gather(-1, kept.sum(-1, keepdim=True) - 1)[:, 0], total)
    before = torch.nn.functional.pad(mass[:, :-1], (1, 0))
    kept &= (before < (top_p * total)[:, None]) | (top_p >= 1.0)[:, None]
    kept &= weights >= draws.on(draws.min_p)[:, None]
    kept[:, 0] = True
    settled &= ~(kept & ending).any(-1)
    target = draws.on(draws.uniform) * mass.gather(-1, kept.sum(-1, keepdim=True) - 1)[:, 0]
    place = first_above(mass, target)
    return ids.gather(-1, place.clamp(max=count - 1)[:, None])[:, 0], settled


def first_above(mass: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index [n] of the first entry of `mass` [n, K], ascending, that is above `target` [n]. Its own weight is then
    positive: a token that cannot be is never drawn."""
    return torch.searchsorted(mass, target[:, None], right=True)[:, 0]
