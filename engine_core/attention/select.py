"""Which attention backend runs here."""

import torch

from engine_core.attention import AttentionBackend
from engine_core.attention.cpu import LANES, CpuAttention
from engine_core.attention.reference import ReferenceAttention


def select(device: torch.device, dtype: torch.dtype, block_size: int) -> AttentionBackend:
    """The fastest backend that works here: the C++ kernel on a CPU with a compiler, for blocks of a multiple of 16
    tokens; else plain torch."""
    if device.type == "cpu" and block_size % LANES == 0 and CpuAttention.available(dtype):
        return CpuAttention(block_size, dtype)
    return ReferenceAttention(block_size, dtype, device)
