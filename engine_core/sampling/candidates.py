"""The highest logits of each row, and an order among them that no batch changes.

Order everywhere: higher logit first, among equals the lower token id (bf16 logits tie often). It makes the rank of a
token a function of its row alone, however many candidates somebody asked for.
"""

import numpy as np
import torch

BLOCK = 64  # tokens; rows are padded to a multiple of it


def padded(width: int) -> int:
    """The next multiple of BLOCK."""
    return -(-width // BLOCK) * BLOCK


def widest(scores: torch.Tensor, count: int, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest values of each row of `scores` [R, V], or of the rows [n] alone: values and ids, both
    [n, min(count, V)], unordered. Which of several equal values at the end of the list are in it is arbitrary.

    A row's highest values lie in the blocks with the highest peaks, so only those are searched: a quarter of the time
    of `topk` over 152k columns.
    """
    height, width = scores.shape
    if width % BLOCK:
        scores = torch.nn.functional.pad(scores, (0, padded(width) - width), value=-torch.inf)
    blocks = scores.view(height, -1, BLOCK)
    if rows is None:
        rows = torch.arange(height, device=scores.device)
    if count >= blocks.shape[1]:  # of the blocks none can be left out
        values = scores[rows]
        ids = torch.arange(scores.shape[1], device=scores.device).expand_as(values)
    else:
        best = blocks.amax(-1)[rows].topk(count, sorted=False).indices  # [n, count]
        values = blocks[rows[:, None], best].flatten(1)  # [n, count * BLOCK]
        ids = (best[:, :, None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    if count >= width:
        return values[:, :width], ids[:, :width]
    values, places = values.topk(count, sorted=False)
    return values, ids.gather(-1, places)


def ranked(values: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both [..., K] in the order above; values fp32 without NaN, ids below 2**32. Zeros come back positive.

    Sorts 64-bit keys: on a CPU NumPy's vectorised sort of them is eight times as fast as a stable sort of floats.
    """
    order = bits_in_order((values + 0.0).view(torch.int32))  # + 0.0: -0.0 equals 0.0, so its bits must, too
    keys = ((~order).to(torch.int64) << 32) | ids
    keys = torch.from_numpy(np.sort(keys.numpy(), axis=-1)) if keys.device.type == "cpu" else keys.sort(-1).values
    return bits_in_order((~(keys >> 32)).to(torch.int32)).view(torch.float32), keys & 0xFFFFFFFF


def bits_in_order(bits: torch.Tensor) -> torch.Tensor:
    """Maps the bits of a float to an int32 that compares like the float, and back: it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
