"""The KV cache: how many blocks fit, and the tensors of all layers. Which sequence owns which block is the scheduler's
affair; block 0 is nobody's (padding writes there)."""

from collections.abc import Callable, Sequence
from typing import Final

import torch

from engine_core.attention import AttentionBackend, LayerCache, LayerGeometry
from engine_core.errors import CannotStart
from engine_core.memory import free_bytes, readable

MIN_BLOCKS: Final = 4  # beside block 0; less is not worth starting with
_CPU_DEFAULT: Final = 2 << 30
_CUDA_SHARE: Final = 0.9


class KVCache:
    """`layers[i]` is the cache of the i-th attention layer, in its backend's layout. A cache may be smaller than one
    sequence of the model's whole context: then what is longer than `num_tokens` is refused when it is asked for
    (`protocol.validate`), and everything else runs."""

    def __init__(
        self, backend: AttentionBackend, geometries: Sequence[LayerGeometry], num_blocks: int, block_size: int
    ) -> None:
        """`num_blocks` includes block 0."""
        self.backend = backend
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layers: list[LayerCache] = [backend.allocate(geometry, num_blocks) for geometry in geometries]

    @property
    def num_tokens(self) -> int:
        """Tokens that sequences can have in it."""
        return (self.num_blocks - 1) * self.block_size

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def count_blocks(
    memory: int, backend: AttentionBackend, geometries: Sequence[LayerGeometry], device: torch.device
) -> int:
    """Blocks, block 0 included, that `memory` bytes hold. Raises CannotStart if they are too few, or more than the
    device has room for."""
    there = free_bytes(device)
    if memory > there:
        raise CannotStart(
            f"--kv-cache-memory {readable(memory)}: only {readable(there)} of memory is free on {device}; ask for less"
        )
    block = sum(backend.block_bytes(geometry) for geometry in geometries)
    blocks = memory // block
    if blocks < MIN_BLOCKS + 1:
        raise CannotStart(
            f"the KV cache does not fit: {readable(memory)} of memory, and {MIN_BLOCKS + 1} blocks, the least to run "
            f"with, take {readable(block * (MIN_BLOCKS + 1))}; raise --kv-cache-memory or free memory on {device}"
        )
    return blocks


def default_memory(device: torch.device, rehearse: Callable[[], None]) -> int:
    """Bytes for the cache when the operator names none. CPU: 2 GiB, or half of what is free if that is less. CUDA: 90 %
    of what is free beside the largest step; `rehearse` runs one, without a cache."""
    if device.type != "cuda":
        return min(_CPU_DEFAULT, free_bytes(device) // 2)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    rehearse()
    torch.cuda.synchronize(device)
    step = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return max(0, int(_CUDA_SHARE * (free_bytes(device) - step)))
