"""Times the CPU attention kernel against torch's SDPA on gathered pages: `python -m tests.benchmarks.attention`.

CPU time of all threads, best of several runs, in milliseconds per layer; keys and values are random. SDPA's figure does
not include gathering the pages, which a paged cache would need as well.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine_core.attention import LayerGeometry
from engine_core.attention.cpu import CpuAttention
from engine_core.attention.self_check import plan_for

BLOCK = 16
SHAPES = ((12, 4, 64), (14, 2, 64), (32, 8, 128), (16, 16, 64))  # query heads, kv heads, head dim
CASES = ((32, 512, 1), (8, 4096, 1), (1, 512, 512), (1, 2048, 512))  # rows, keys, queries per row


def best_ms(work: Callable[[], object], runs: int) -> float:
    work()
    times = []
    for _ in range(runs):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def kernel_ms(
    geometry: LayerGeometry, rows: int, keys: int, queries: int, dtype: torch.dtype, runs: int, layers: int
) -> float:
    """Per layer, going through `layers` caches so that decodes find them cold, as in a model."""
    backend = CpuAttention(BLOCK, dtype)
    width = -(-keys // BLOCK)
    table = (torch.randperm(rows * width) + 1).view(rows, width).int()
    caches = [backend.allocate(geometry, rows * width + 1) for _ in range(layers)]
    for cache in caches:
        cache.keys.normal_(), cache.values.normal_()
    query, key, value = (
        torch.randn(rows * queries, heads, geometry.key_dim, dtype=dtype)
        for heads in (geometry.query_heads, geometry.kv_heads, geometry.kv_heads)
    )
    backend.begin(plan_for([(keys - queries, keys)] * rows, table, BLOCK))

    def step() -> None:
        for cache in caches:
            backend.attend(cache, geometry, query, key, value, None)

    return best_ms(step, runs) / layers


def sdpa_ms(geometry: LayerGeometry, rows: int, keys: int, queries: int, dtype: torch.dtype, runs: int) -> float:
    """One call for all rows: the best case, since all are equally long."""
    query = torch.randn(rows, geometry.query_heads, queries, geometry.key_dim, dtype=dtype)
    key, value = (torch.randn(rows, geometry.kv_heads, keys, geometry.key_dim, dtype=dtype) for _ in range(2))
    causal = queries == keys
    mask = None if queries == 1 or causal else torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return best_ms(
        lambda: scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=geometry.scale, enable_gqa=True
        ),
        runs,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(
        f"{'heads':>10} {'rows x keys x queries':>22} {'dtype':>9} {'kernel':>9} {'SDPA':>9} {'ratio':>6} {'GB/s':>6}"
    )
    for query_heads, kv_heads, dim in SHAPES:
        geometry = LayerGeometry(query_heads, kv_heads, dim, dim, dim**-0.5)
        for rows, keys, queries in CASES:
            for dtype in (torch.bfloat16, torch.float32):
                size = 2 * rows * keys * kv_heads * dim * dtype.itemsize
                layers = max(1, (100 << 20) // size) if queries == 1 else 1
                ours = kernel_ms(geometry, rows, keys, queries, dtype, options.runs, layers)
                theirs = sdpa_ms(geometry, rows, keys, queries, dtype, options.runs)
                print(
                    f"{query_heads:>4}/{kv_heads:<2}x{dim:<3}"
                    f" {rows:>7} x {keys:>5} x {queries:<5} {str(dtype)[6:]:>9} {ours:9.2f} {theirs:9.2f}"
                    f" {theirs / ours:6.1f} {size / ours / 1e6:6.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
