"""The compiled CPU kernel against attention written out in fp32, and against itself in other company."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from engine_core.attention import AttentionPlan, LayerGeometry, cpu, native
from engine_core.attention.cpu import CpuAttention
from engine_core.attention.self_check import plan_for

pytestmark = pytest.mark.skipif(not CpuAttention.available(torch.float32), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Tokens:
    """Queries, keys and values of one sequence, [T, heads, dim], and the blocks that it has."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    blocks: list[int]

    @property
    def length(self) -> int:
        return len(self.query)


def sequences(
    geometry: LayerGeometry, lengths: Sequence[int], dtype: torch.dtype, seed: int = 0, block_size: int = 16
) -> list[Tokens]:
    """Each has its own numbers whatever the others are, and blocks shuffled among all."""
    made = []
    free = (torch.randperm(sum(-(-length // block_size) for length in lengths)) + 1).tolist()
    for number, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        query, key, value = (
            torch.randn(length, heads, dim, generator=generator).to(dtype)
            for heads, dim in (
                (geometry.query_heads, geometry.key_dim),
                (geometry.kv_heads, geometry.key_dim),
                (geometry.kv_heads, geometry.value_dim),
            )
        )
        made.append(Tokens(query, key, value, [free.pop() for _ in range(-(-length // block_size))]))
    return made


class Machine:
    """A backend and one layer's cache, and how far each sequence is in it."""

    def __init__(
        self, geometry: LayerGeometry, dtype: torch.dtype, num_blocks: int, block_size: int = 16, fill: float = 0.0
    ) -> None:
        self.geometry = geometry
        self.block_size = block_size
        self.backend = CpuAttention(block_size, dtype)
        self.cache = self.backend.allocate(geometry, num_blocks)
        self.cache.keys.fill_(fill)
        self.cache.values.fill_(fill)
        self.sinks = torch.randn(geometry.query_heads, generator=torch.Generator().manual_seed(9))

    def step(self, parts: Sequence[tuple[Tokens, int, int]]) -> list[torch.Tensor]:
        """Tokens `start` … `end` of each sequence. Returns the outputs of each, [count, query_heads, value_dim]."""
        table = torch.zeros(len(parts), max(len(part[0].blocks) for part in parts), dtype=torch.int32)
        for row, (sequence, _, _) in enumerate(parts):
            table[row, : len(sequence.blocks)] = torch.tensor(sequence.blocks)
        self.backend.begin(plan_for([(start, end) for _, start, end in parts], table, self.block_size))
        query, key, value = (
            torch.cat([getattr(sequence, name)[start:end] for sequence, start, end in parts])
            for name in ("query", "key", "value")
        )
        sinks = self.sinks if self.geometry.sinks else None
        output = self.backend.attend(self.cache, self.geometry, query, key, value, sinks)
        assert output.dtype == query.dtype
        return list(torch.split(output, [end - start for _, start, end in parts]))

    def run(self, sequence: Tokens, cuts: Sequence[int]) -> torch.Tensor:
        """The whole sequence alone, cut into chunks."""
        edges = [0, *cuts, sequence.length]
        return torch.cat([self.step([(sequence, a, b)])[0] for a, b in pairwise(edges)])


def written_out(geometry: LayerGeometry, sequence: Tokens, sinks: torch.Tensor) -> torch.Tensor:
    """Attention as its definition says, in fp64: [T, query_heads, value_dim]."""
    query, key, value = (tensor.double() for tensor in (sequence.query, sequence.key, sequence.value))
    groups = geometry.query_heads // geometry.kv_heads
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * geometry.scale
    if geometry.softcap is not None:
        scores = geometry.softcap * torch.tanh(scores / geometry.softcap)
    at = torch.arange(sequence.length)
    seen = at[None, :] <= at[:, None]
    if geometry.window is not None:
        seen &= at[None, :] > at[:, None] - geometry.window
    if geometry.chunk is not None:
        seen &= at[None, :] // geometry.chunk == at[:, None] // geometry.chunk
    scores = scores.masked_fill(~seen, -torch.inf)
    if geometry.sinks:
        column = sinks.double()[:, None, None].expand(-1, sequence.length, 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def of(query_heads: int, kv_heads: int, key_dim: int, value_dim: int | None = None, **more: object) -> LayerGeometry:
    value_dim = key_dim if value_dim is None else value_dim
    return LayerGeometry(query_heads, kv_heads, key_dim, value_dim, key_dim**-0.5, **more)  # type: ignore[arg-type]


GEOMETRIES = {
    "multi_head": of(4, 4, 64),
    "pairs": of(8, 4, 64),
    "threes": of(12, 4, 64),
    "sevens": of(14, 2, 64),
    "one_kv_head": of(71, 1, 64),
    "forty_rows": of(40, 1, 16),
    "dim_8": of(4, 2, 8),
    "dim_13": of(5, 1, 13),
    "dim_80": of(4, 1, 80),
    "dim_96": of(6, 2, 96),
    "dim_128": of(8, 2, 128),
    "dim_256": of(2, 1, 256),
    "values_narrower": of(4, 4, 192, 128),
    "values_wider": of(4, 2, 24, 33),
    "value_dim_1": of(2, 2, 3, 1),
    "window_1": of(4, 2, 32, window=1),
    "window_5": of(4, 2, 32, window=5),
    "window_64": of(6, 2, 32, window=64),
    "window_100": of(3, 3, 32, window=100),
    "chunk_7": of(4, 2, 32, chunk=7),
    "chunk_64": of(6, 2, 32, chunk=64),
    "window_and_chunk": of(4, 2, 32, window=20, chunk=48),
    "softcap": of(4, 2, 32, softcap=2.0),
    "softcap_50": of(6, 2, 32, softcap=50.0),
    "sinks": of(6, 2, 32, sinks=True),
    "sinks_in_a_window": of(8, 1, 64, sinks=True, window=40),
    "everything": of(10, 2, 40, 24, window=70, softcap=5.0, sinks=True),
}
LENGTHS = (150, 1, 16, 17, 64, 65, 97, 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_mixed_steps_give_what_the_definition_says(name: str, dtype: torch.dtype) -> None:
    """Whole prompts, chunks and decodes of several sequences in one step, over blocks in no order."""
    geometry = GEOMETRIES[name]
    batch = sequences(geometry, LENGTHS, dtype)
    machine = Machine(geometry, dtype, 1 + sum(len(sequence.blocks) for sequence in batch))
    outputs: list[list[torch.Tensor]] = [[] for _ in batch]
    done = [0] * len(batch)
    generator = torch.Generator().manual_seed(3)
    while any(at < sequence.length for at, sequence in zip(done, batch, strict=True)):
        parts = []
        for number, sequence in enumerate(batch):
            chunk = int(torch.randint(0, 4, (1,), generator=generator))
            count = min((0, 1, 33, 90)[chunk], sequence.length - done[number])
            if count:
                parts.append((number, done[number], done[number] + count))
                done[number] += count
        if parts:
            results = machine.step([(batch[number], start, end) for number, start, end in parts])
            for (number, _, _), result in zip(parts, results, strict=True):
                outputs[number].append(result)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for sequence, output in zip(batch, outputs, strict=True):
        expected = written_out(geometry, sequence, machine.sinks)
        torch.testing.assert_close(torch.cat(output).double(), expected, rtol=tolerance, atol=tolerance)


def test_a_long_context() -> None:
    geometry = of(4, 2, 16)
    (sequence,) = sequences(geometry, [3000], torch.float32)
    output = Machine(geometry, torch.float32, 200).run(sequence, [2000, 2999])
    expected = written_out(geometry, sequence, torch.zeros(4))
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


def test_scores_of_any_size() -> None:
    """Weights that are 1 or vanish, and a peak that rises from page to page."""
    geometry = replace(of(2, 1, 8), scale=40.0)
    (sequence,) = sequences(geometry, [300], torch.float32)
    sequence.key *= torch.linspace(0.1, 5.0, 300)[:, None, None]
    output = Machine(geometry, torch.float32, 20).run(sequence, [100])
    torch.testing.assert_close(output.double(), written_out(geometry, sequence, torch.zeros(2)), rtol=1e-3, atol=1e-3)


# -------------------------------------------------------------------------------------------------- independence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["threes", "multi_head", "one_kv_head", "values_wider", "window_64", "everything"])
def test_a_token_s_result_is_the_same_bits_in_any_company_and_chunking(name: str, dtype: torch.dtype) -> None:
    geometry = GEOMETRIES[name]
    batch = sequences(geometry, LENGTHS, dtype)
    num_blocks = 1 + sum(len(sequence.blocks) for sequence in batch)
    together = Machine(geometry, dtype, num_blocks).step([(each, 0, each.length) for each in batch])
    backwards = Machine(geometry, dtype, num_blocks).step([(each, 0, each.length) for each in reversed(batch)])
    for output, again in zip(together, reversed(backwards), strict=True):
        assert torch.equal(output, again)
    for sequence, output in zip(batch, together, strict=True):
        length = sequence.length
        for cuts in (range(0), range(1, length), range(5, length, 37), range(max(1, length - 1), length)):
            assert torch.equal(Machine(geometry, dtype, num_blocks).run(sequence, cuts), output)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_a_token_s_result_is_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    geometry = GEOMETRIES["everything"]
    batch = sequences(geometry, LENGTHS, torch.bfloat16)
    parts = [(each, 0, each.length) for each in batch]
    alone = Machine(geometry, torch.bfloat16, 80).step(parts)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, Machine(geometry, torch.bfloat16, 80).step(parts), alone))


def test_neither_the_block_size_nor_the_blocks_matter() -> None:
    geometry = GEOMETRIES["threes"]
    (narrow,) = sequences(geometry, [200], torch.float32)
    expected = Machine(geometry, torch.float32, 20).run(narrow, [90])
    (wide,) = sequences(geometry, [200], torch.float32, block_size=48)
    assert torch.equal(Machine(geometry, torch.float32, 20, block_size=48).run(wide, [90]), expected)
    narrow.blocks.reverse()
    assert torch.equal(Machine(geometry, torch.float32, 20).run(narrow, [90]), expected)


@pytest.mark.parametrize("name", ["threes", "multi_head", "window_5", "sinks"])
@pytest.mark.parametrize("leftover", [torch.nan, torch.inf])
def test_what_lay_in_the_blocks_before_does_not_show(name: str, leftover: float) -> None:
    geometry = GEOMETRIES[name]
    (sequence,) = sequences(geometry, [70], torch.float32)
    clean = Machine(geometry, torch.float32, 20)
    dirty = Machine(geometry, torch.float32, 20, fill=leftover)
    assert torch.equal(dirty.run(sequence, [30, 69]), clean.run(sequence, [30, 69]))


@pytest.mark.parametrize("name", ["threes", "multi_head", "softcap"])
def test_a_broken_token_breaks_only_those_after_it(name: str) -> None:
    geometry = GEOMETRIES[name]
    sound, broken = (sequences(geometry, [100, 40], torch.float32) for _ in range(2))
    broken[0].key[50], broken[0].value[50] = torch.nan, torch.nan
    expected, found = (
        Machine(geometry, torch.float32, 20).step([(each, 0, each.length) for each in batch])
        for batch in (sound, broken)
    )
    assert torch.equal(found[0][:50], expected[0][:50])
    assert bool(found[0][50:].isnan().all())
    assert torch.equal(found[1], expected[1])


# -------------------------------------------------------------------------------------------------------- edges


def test_views_of_any_strides_are_read() -> None:
    geometry = GEOMETRIES["pairs"]
    (sequence,) = sequences(geometry, [40], torch.float32)
    expected = Machine(geometry, torch.float32, 9).run(sequence, [])
    for name in ("query", "key", "value"):
        tensor = getattr(sequence, name)
        heads_first = tensor.transpose(0, 1).contiguous().transpose(0, 1)
        dims_first = tensor.transpose(0, 2).contiguous().transpose(0, 2)
        sliced = torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
        for view in (heads_first, dims_first, sliced):
            given: dict[str, Any] = {"query": sequence.query, "key": sequence.key, "value": sequence.value, name: view}
            machine = Machine(geometry, torch.float32, 9)
            table = torch.tensor([sequence.blocks], dtype=torch.int32)
            machine.backend.begin(plan_for([(0, 40)], table, 16))
            found = machine.backend.attend(machine.cache, geometry, **given, sinks=None)
            assert torch.equal(found, expected)


def test_tensors_of_another_float_type_are_converted() -> None:
    geometry = GEOMETRIES["pairs"]
    (sequence,) = sequences(geometry, [40], torch.bfloat16)
    expected = Machine(geometry, torch.bfloat16, 9).run(sequence, [])
    sequence.query = sequence.query.float()
    found = Machine(geometry, torch.bfloat16, 9).run(sequence, [])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())


def test_a_block_takes_the_bytes_it_says() -> None:
    for geometry in GEOMETRIES.values():
        for dtype in (torch.float32, torch.bfloat16):
            backend = CpuAttention(32, dtype)
            assert backend.allocate(geometry, 5).nbytes == 5 * backend.block_bytes(geometry)
    assert CpuAttention(16, torch.bfloat16).allocate(of(2, 2, 5), 3).keys.data_ptr() % 64 == 0


GEOMETRY = GEOMETRIES["pairs"]
PLAN = plan_for([(0, 20), (33, 34)], torch.tensor([[1, 2, 0], [3, 4, 5]], dtype=torch.int32), 16)
CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "no tokens": {"slots": torch.zeros(0, dtype=torch.int64)},
    "shapes": {"kv_lens": torch.tensor([20])},
    "divide": {"query_starts": torch.tensor([0, 20, 22])},
    "divide backwards": {"query_starts": torch.tensor([0, 22, 21])},
    "more queries than keys": {"kv_lens": torch.tensor([19, 34])},
    "more keys than its blocks": {"kv_lens": torch.tensor([20, 49])},
    "count from 0": {"slots": PLAN.slots - 17},
    "count from 0 too": {"block_table": PLAN.block_table - 1},
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_plan_that_contradicts_itself_is_refused(name: str) -> None:
    backend = CpuAttention(16, torch.float32)
    plan: AttentionPlan = replace(PLAN, **CONTRADICTIONS[name])
    with pytest.raises(ValueError):  # noqa: PT011
        backend.begin(plan)


def test_tensors_that_do_not_fit_are_refused() -> None:
    backend = CpuAttention(16, torch.float32)
    cache = backend.allocate(GEOMETRY, 6)
    query, key, value = torch.zeros(21, 8, 64), torch.zeros(21, 4, 64), torch.zeros(21, 4, 64)
    with pytest.raises(TypeError, match="plan"):
        backend.attend(cache, GEOMETRY, query, key, value, None)
    backend.begin(PLAN)
    backend.attend(cache, GEOMETRY, query, key, value, None)
    for wrong in ((query[:20], key, value), (query, key[:, :3], value), (query, key, value[..., :63])):
        with pytest.raises(ValueError, match="expected"):
            backend.attend(cache, GEOMETRY, *wrong, None)
    with pytest.raises(ValueError, match="fewer blocks"):
        backend.attend(backend.allocate(GEOMETRY, 5), GEOMETRY, query, key, value, None)
    with pytest.raises(ValueError, match="another geometry"):
        backend.attend(cache, GEOMETRIES["threes"], query, key, value, None)
    with pytest.raises(ValueError, match="sinks"):
        backend.attend(cache, GEOMETRY, query, key, value, torch.zeros(8))
    with pytest.raises(ValueError, match="share"):
        backend.allocate(of(5, 2, 8), 2)
    with pytest.raises(ValueError, match="multiple of 16"):
        CpuAttention(24, torch.float32)


def test_it_says_when_it_is_not_available(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert CpuAttention.available(torch.bfloat16)
    assert not CpuAttention.available(torch.float16)
    cpu.works.cache_clear()
    monkeypatch.setattr(cpu, "largest_error", lambda *_: float("inf"))
    assert not CpuAttention.available(torch.float32)
    assert "off by inf" in caplog.text

    def no_compiler() -> None:
        raise native.CannotCompile("there is no C++ compiler here")

    cpu.works.cache_clear()
    monkeypatch.setattr(cpu, "library", no_compiler)
    assert not CpuAttention.available(torch.float32)
    assert "no C++ compiler" in caplog.text
    cpu.works.cache_clear()
