"""The reference backend against attention written out one query at a time, in float64."""

import math
from dataclasses import dataclass

import pytest
import torch

from engine_core.attention import AttentionPlan, LayerGeometry, reference
from tests.engine_core.driver import BACKENDS, CPU, make_backend

BLOCK = 16
GEOMETRIES = {
    "multi-head": LayerGeometry(4, 4, 8, 8, 0.35),
    "grouped": LayerGeometry(6, 2, 16, 16, 0.25),
    "one kv head": LayerGeometry(7, 1, 8, 8, 0.3),
    "window": LayerGeometry(4, 2, 8, 8, 0.35, window=5),
    "window of one": LayerGeometry(4, 2, 8, 8, 0.35, window=1),
    "chunk": LayerGeometry(4, 2, 8, 8, 0.35, chunk=6),
    "softcap": LayerGeometry(4, 2, 8, 8, 2.0, softcap=3.0),
    "sinks": LayerGeometry(4, 2, 8, 8, 0.35, sinks=True),
    "sinks in a window": LayerGeometry(4, 2, 8, 8, 0.35, window=9, sinks=True),
    "other values": LayerGeometry(6, 6, 24, 16, 0.2),
    "odd dims": LayerGeometry(4, 2, 20, 12, 0.2, window=7, softcap=5.0),
}
# (tokens already cached, tokens of this step): decodes, first and later chunks, one beyond a block's edge
ROWS = [(0, 7), (40, 1), (16, 1), (5, 20), (0, 1), (33, 3), (15, 2), (70, 1)]


@dataclass
class Sequences:
    """Random keys and values of some sequences, the last tokens of which a step brings."""

    keys: list[torch.Tensor]  # [L, kv_heads, key_dim] each
    values: list[torch.Tensor]
    queries: list[torch.Tensor]  # [Q, query_heads, key_dim] each
    sinks: torch.Tensor | None


def draw(geometry: LayerGeometry, dtype: torch.dtype) -> Sequences:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    lengths = [cached + new for cached, new in ROWS]
    return Sequences(
        [normal(length, geometry.kv_heads, geometry.key_dim) for length in lengths],
        [normal(length, geometry.kv_heads, geometry.value_dim) for length in lengths],
        [normal(new, geometry.query_heads, geometry.key_dim) for _, new in ROWS],
        normal(geometry.query_heads) if geometry.sinks else None,
    )


def written_out(geometry: LayerGeometry, sequences: Sequences) -> torch.Tensor:
    """[T, query_heads, value_dim], from the definition."""
    out: list[torch.Tensor] = []
    groups = geometry.query_heads // geometry.kv_heads
    for keys, values, queries, (cached, _) in zip(
        sequences.keys, sequences.values, sequences.queries, ROWS, strict=True
    ):
        for offset, query in enumerate(queries.double()):
            position = cached + offset
            first = max(0, position - geometry.window + 1) if geometry.window else 0
            first = max(first, position // geometry.chunk * geometry.chunk) if geometry.chunk else first
            heads = []
            for head in range(geometry.query_heads):
                seen = keys[first : position + 1, head // groups].double()
                scores = seen @ query[head] * geometry.scale
                if geometry.softcap:
                    scores = geometry.softcap * torch.tanh(scores / geometry.softcap)
                weights = scores.exp()
                total = weights.sum() + (math.exp(float(sequences.sinks[head])) if sequences.sinks is not None else 0.0)
                heads.append((weights / total) @ values[first : position + 1, head // groups].double())
            out.append(torch.stack(heads))
    return torch.stack(out)


def plan_of(rows: list[tuple[int, int]]) -> tuple[AttentionPlan, list[list[int]]]:
    """Blocks are dealt in a shuffled order. Also returns each row's blocks."""
    free = torch.randperm(40, generator=torch.Generator().manual_seed(4)).add(1).tolist()
    blocks = [[free.pop() for _ in range(-(-(cached + new) // BLOCK))] for cached, new in rows]
    width = max(map(len, blocks))
    positions = torch.cat([torch.arange(cached, cached + new) for cached, new in rows])
    owners = [row for row, (_, new) in enumerate(rows) for _ in range(new)]
    slots = [
        blocks[row][position // BLOCK] * BLOCK + position % BLOCK
        for row, position in zip(owners, positions.tolist(), strict=True)
    ]
    counts = torch.tensor([0] + [new for _, new in rows])
    plan = AttentionPlan(
        positions,
        torch.tensor(slots),
        counts.cumsum(0).to(torch.int32),
        torch.tensor([cached + new for cached, new in rows], dtype=torch.int32),
        torch.tensor([row + [0] * (width - len(row)) for row in blocks], dtype=torch.int32),
        max(new for _, new in rows),
        max(cached + new for cached, new in rows),
    )
    return plan, blocks


def run(backend_name: str, geometry: LayerGeometry, sequences: Sequences, dtype: torch.dtype) -> torch.Tensor:
    """First the cached part of every sequence as a step of its own, then the rest."""
    backend = make_backend(backend_name, BLOCK, dtype)
    cache = backend.allocate(geometry, 41)
    plan, blocks = plan_of(ROWS)
    before = [(0, cached) for cached, _ in ROWS if cached]
    prefix, _ = plan_of(before)
    table = torch.zeros(len(before), plan.block_table.shape[1], dtype=torch.int32)
    slots: list[int] = []
    for index, row in enumerate(row for row, (cached, _) in enumerate(ROWS) if cached):
        table[index, : len(blocks[row])] = torch.tensor(blocks[row], dtype=torch.int32)
        slots += [blocks[row][p // BLOCK] * BLOCK + p % BLOCK for p in range(ROWS[row][0])]
    prefix = AttentionPlan(
        prefix.positions,
        torch.tensor(slots),
        prefix.query_starts,
        prefix.kv_lens,
        table,
        prefix.max_query_len,
        prefix.max_kv_len,
    )
    old_keys = torch.cat([keys[:cached] for keys, (cached, _) in zip(sequences.keys, ROWS, strict=True)])
    old_values = torch.cat([values[:cached] for values, (cached, _) in zip(sequences.values, ROWS, strict=True)])
    filler = torch.zeros(len(old_keys), geometry.query_heads, geometry.key_dim, dtype=dtype)
    backend.begin(prefix)
    backend.attend(cache, geometry, filler, old_keys, old_values, sequences.sinks)

    backend.begin(plan)
    new_keys = torch.cat([keys[cached:] for keys, (cached, _) in zip(sequences.keys, ROWS, strict=True)])
    new_values = torch.cat([values[cached:] for values, (cached, _) in zip(sequences.values, ROWS, strict=True)])
    # As transformers hands them over: views of [heads, T, dim].
    query = torch.cat(sequences.queries).transpose(0, 1).contiguous().transpose(0, 1)
    return backend.attend(cache, geometry, query, new_keys, new_values, sequences.sinks)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_mixed_step_is_what_the_definition_says(name: str, dtype: torch.dtype, backend: str) -> None:
    geometry = GEOMETRIES[name]
    sequences = draw(geometry, dtype)
    out = run(backend, geometry, sequences, dtype)
    assert out.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(out.double(), written_out(geometry, sequences), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["grouped", "window", "sinks"])
def test_the_bounds_on_memory_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = GEOMETRIES[name]
    sequences = draw(geometry, torch.float32)
    monkeypatch.setattr(reference, "_GATHER_ELEMENTS", 64)
    monkeypatch.setattr(reference, "_SCORE_ELEMENTS", 300)
    out = run("reference", geometry, sequences, torch.float32)
    torch.testing.assert_close(out.double(), written_out(geometry, sequences), rtol=2e-6, atol=2e-6)


def test_a_plan_comes_first() -> None:
    backend = reference.ReferenceAttention(BLOCK, torch.float32, CPU)
    geometry = GEOMETRIES["grouped"]
    with pytest.raises(TypeError, match="plan"):
        backend.attend(
            backend.allocate(geometry, 2),
            geometry,
            torch.zeros(1, 6, 16),
            torch.zeros(1, 2, 16),
            torch.zeros(1, 2, 16),
            None,
        )
