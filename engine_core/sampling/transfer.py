"""From the host to the device without waiting for it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A tensor of the array's values; on a CPU it shares their memory. The copy to a GPU is taken before this returns
    and queued behind the work in hand: the host waits for nothing."""
    shared: Any = torch.from_numpy(array)
    moved: torch.Tensor = shared.to(device, non_blocking=True)
    return moved
