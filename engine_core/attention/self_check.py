"""A small computation that a backend must get right before it is trusted: mixed rows against torch's own attention."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine_core.attention import AttentionBackend, AttentionPlan, LayerGeometry

GEOMETRY = LayerGeometry(query_heads=6, kv_heads=2, key_dim=20, value_dim=24, scale=0.2)
LENGTHS = (75, 38)  # tokens per sequence
STEPS = ((40, 37), (34, 1), (1, 0))  # queries of each in one step: chunks, a chunk beside a decode, a decode alone


def largest_error(backend: AttentionBackend, block_size: int, dtype: torch.dtype) -> float:
    """Largest difference between the backend's results, of size 1, and torch's in fp32. NaN gives infinity."""
    generator = torch.Generator().manual_seed(0)
    heads = ((GEOMETRY.query_heads, 20), (GEOMETRY.kv_heads, 20), (GEOMETRY.kv_heads, 24))
    sequences = [[torch.randn(length, *dims, generator=generator).to(dtype) for dims in heads] for length in LENGTHS]
    width = -(-max(LENGTHS) // block_size)
    table = (torch.randperm(2 * width, generator=generator) + 1).view(2, width).int()
    cache = backend.allocate(GEOMETRY, 2 * width + 1)
    done = [0] * len(LENGTHS)
    error = 0.0
    for counts in STEPS:
        ranges = [(row, done[row], done[row] + count) for row, count in enumerate(counts) if count]
        done = [start + count for start, count in zip(done, counts, strict=True)]
        backend.begin(
            plan_for([(start, end) for _, start, end in ranges], table[[row for row, *_ in ranges]], block_size)
        )
        query, key, value = (
            torch.cat([sequences[row][part][start:end] for row, start, end in ranges]) for part in range(3)
        )
        output = backend.attend(cache, GEOMETRY, query, key, value, None).float()
        expected = torch.cat([attention(*sequences[row])[start:end] for row, start, end in ranges])
        difference = (output - expected).abs().max().item()
        error = max(error, difference if difference == difference else float("inf"))
    return error


def plan_for(ranges: list[tuple[int, int]], table: torch.Tensor, block_size: int) -> AttentionPlan:
    """A step that computes tokens `start` … `end` of each row."""
    starts, ends = (torch.tensor(column) for column in zip(*ranges, strict=True))
    positions = torch.cat([torch.arange(start, end) for start, end in ranges])
    rows = torch.repeat_interleave(torch.arange(len(ranges)), ends - starts)
    return AttentionPlan(
        positions=positions,
        slots=table[rows, positions // block_size].long() * block_size + positions % block_size,
        query_starts=torch.cat([torch.zeros(1, dtype=torch.int64), (ends - starts).cumsum(0)]).int(),
        kv_lens=ends.int(),
        block_table=table,
        max_query_len=int((ends - starts).max()),
        max_kv_len=int(ends.max()),
    )


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention over one whole sequence [T, heads, dim], in fp32."""
    query, key, value = (tensor.float().transpose(0, 1) for tensor in (query, key, value))
    return scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=GEOMETRY.scale, enable_gqa=True
    ).transpose(0, 1)
