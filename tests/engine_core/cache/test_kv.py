import pytest
import torch

from engine_core.attention import LayerGeometry
from engine_core.attention.reference import ReferenceAttention
from engine_core.cache.kv import MIN_BLOCKS, KVCache, count_blocks, default_memory
from engine_core.errors import CannotStart
from engine_core.memory import readable

CPU = torch.device("cpu")
GEOMETRIES = [LayerGeometry(4, 2, 8, 16, 1.0), LayerGeometry(4, 1, 24, 24, 1.0, window=8)]
BLOCK_BYTES = 16 * 2 * (2 * (8 + 16) + 1 * (24 + 24))  # tokens * bytes * elements of both layers


def test_as_many_blocks_as_fit() -> None:
    backend = ReferenceAttention(16, torch.bfloat16, CPU)
    assert count_blocks(10 * BLOCK_BYTES + 5, backend, GEOMETRIES, CPU) == 10
    cache = KVCache(backend, GEOMETRIES, 10, 16)
    assert cache.num_tokens == 9 * 16
    assert cache.nbytes == 10 * BLOCK_BYTES
    assert len(cache.layers) == 2


def test_too_little_memory_is_refused_with_what_it_takes() -> None:
    backend = ReferenceAttention(16, torch.bfloat16, CPU)
    needed = readable((MIN_BLOCKS + 1) * BLOCK_BYTES)
    with pytest.raises(CannotStart, match=rf"KV cache does not fit.*{needed}.*--kv-cache-memory"):
        count_blocks(MIN_BLOCKS * BLOCK_BYTES, backend, GEOMETRIES, CPU)
    assert count_blocks((MIN_BLOCKS + 1) * BLOCK_BYTES, backend, GEOMETRIES, CPU) == MIN_BLOCKS + 1


def test_more_memory_than_there_is_is_refused() -> None:
    backend = ReferenceAttention(16, torch.bfloat16, CPU)
    with pytest.raises(CannotStart, match=r"--kv-cache-memory 1\.0 PiB: only .* free on cpu"):
        count_blocks(1 << 50, backend, GEOMETRIES, CPU)


def test_the_default_leaves_half_of_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.cache.kv.free_bytes", lambda device: 1 << 30)
    assert default_memory(CPU, rehearse=lambda: None) == 1 << 29
    monkeypatch.setattr("engine_core.cache.kv.free_bytes", lambda device: 64 << 30)
    assert default_memory(CPU, rehearse=lambda: None) == 2 << 30
