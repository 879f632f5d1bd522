"""Paged attention in plain torch: exact, on any device, in float32 whatever the cache holds. What other backends are
tested against, and what runs where they can't.

Keys and values are gathered by block table. Rows with one query token (decodes) go together, sorted by length and cut
into groups of bounded size; rows with more (prefill chunks) go one by one, a bounded number of queries at a time.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from engine_core.attention import AttentionPlan, LayerCache, LayerGeometry
from engine_core.memory import zeros

_GATHER_ELEMENTS: Final = 1 << 23  # of keys or values at a time: 32 MiB in float32
_SCORE_ELEMENTS: Final = 1 << 22  # of scores at a time: 16 MiB in float32


@dataclass(frozen=True, slots=True)
class PagedPair:
    """One layer's keys [num_blocks * block_size, kv_heads, key_dim] and values [..., value_dim]."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class _Rows:
    """The step's rows on the host, and which of them have one query token."""

    query_starts: Sequence[int]
    kv_lens: Sequence[int]
    decodes: Sequence[int]  # indices, by length
    prefills: Sequence[int]


class ReferenceAttention:
    """Implements AttentionBackend."""

    name = "reference"

    def __init__(self, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._block_size = block_size
        self._dtype = dtype
        self._device = device
        self._plan: AttentionPlan | None = None
        self._rows = _Rows((0,), (), (), ())

    def allocate(self, geometry: LayerGeometry, num_blocks: int) -> PagedPair:
        slots = num_blocks * self._block_size
        return PagedPair(
            zeros((slots, geometry.kv_heads, geometry.key_dim), self._dtype, self._device),
            zeros((slots, geometry.kv_heads, geometry.value_dim), self._dtype, self._device),
        )

    def block_bytes(self, geometry: LayerGeometry) -> int:
        per_token = geometry.kv_heads * (geometry.key_dim + geometry.value_dim) * self._dtype.itemsize
        return self._block_size * per_token

    def begin(self, plan: AttentionPlan) -> None:
        """Brings the row lengths to the host, which on a GPU waits for it."""
        starts: list[int] = plan.query_starts.tolist()
        kv_lens: list[int] = plan.kv_lens.tolist()
        counts = [end - start for start, end in itertools.pairwise(starts)]
        decodes = sorted((row for row, count in enumerate(counts) if count == 1), key=kv_lens.__getitem__)
        prefills = [row for row, count in enumerate(counts) if count > 1]
        self._plan = plan
        self._rows = _Rows(starts, kv_lens, decodes, prefills)

    def attend(
        self,
        cache: LayerCache,
        geometry: LayerGeometry,
        query: torch.Tensor,  # [T, query_heads, key_dim]
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        plan = self._plan
        if plan is None or not isinstance(cache, PagedPair):
            raise TypeError("attend needs a plan (see begin) and a cache of this backend")
        cache.keys.index_copy_(0, plan.slots, key)
        cache.values.index_copy_(0, plan.slots, value)
        output = query.new_empty(query.shape[0], geometry.query_heads, geometry.value_dim)
        for group in self._decode_groups(geometry):
            self._attend_decodes(plan, cache, geometry, query, sinks, group, output)
        for row in self._rows.prefills:
            self._attend_prefill(plan, cache, geometry, query, sinks, row, output)
        return output

    def _decode_groups(self, geometry: LayerGeometry) -> Iterator[list[int]]:
        """Rows of like length, each group within the bound once padded to its longest."""
        per_token = geometry.kv_heads * max(geometry.key_dim, geometry.value_dim)
        group: list[int] = []
        for row in self._rows.decodes:
            length = _visible(geometry, self._rows.kv_lens[row])
            if group and (len(group) + 1) * length * per_token > _GATHER_ELEMENTS:
                yield group
                group = []
            group.append(row)
        if group:
            yield group

    def _attend_decodes(
        self,
        plan: AttentionPlan,
        cache: PagedPair,
        geometry: LayerGeometry,
        query: torch.Tensor,
        sinks: torch.Tensor | None,
        group: list[int],
        output: torch.Tensor,
    ) -> None:
        rows = torch.tensor(group, device=query.device)
        tokens = plan.query_starts[rows].long()
        last = plan.positions[tokens]  # [N]
        first = _first_visible(geometry, last)
        length = int(max(_visible(geometry, self._rows.kv_lens[row]) for row in group))
        at = first[:, None] + torch.arange(length, device=query.device)  # [N, L] positions of the keys
        # Padding repeats the row's own last token, never another sequence's memory: a masked NaN would still spread.
        slots = self._slots(plan.block_table[rows], at.minimum(last[:, None]))
        output[tokens] = _attention(
            query[tokens][:, None],
            cache.keys[slots],
            cache.values[slots],
            (at <= last[:, None])[:, None],
            geometry,
            sinks,
        )[:, 0]

    def _attend_prefill(
        self,
        plan: AttentionPlan,
        cache: PagedPair,
        geometry: LayerGeometry,
        query: torch.Tensor,
        sinks: torch.Tensor | None,
        row: int,
        output: torch.Tensor,
    ) -> None:
        start, end = self._rows.query_starts[row], self._rows.query_starts[row + 1]
        offset = self._rows.kv_lens[row] - (end - start)  # position of the first query
        step = max(1, _SCORE_ELEMENTS // (geometry.query_heads * self._rows.kv_lens[row]))
        for begin in range(start, end, step):
            stop = min(begin + step, end)
            positions = plan.positions[begin:stop]
            low = int(_first_visible(geometry, torch.tensor(offset + begin - start)))
            at = torch.arange(low, offset + stop - start, device=query.device)  # [L]
            slots = self._slots(plan.block_table[row : row + 1], at[None])[0]
            seen = (at <= positions[:, None]) & (at >= _first_visible(geometry, positions)[:, None])  # [Q, L]
            output[begin:stop] = _attention(
                query[None, begin:stop], cache.keys[slots][None], cache.values[slots][None], seen[None], geometry, sinks
            )[0]

    def _slots(self, block_table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[N, W] blocks and [N, L] positions → [N, L] places in the cache."""
        blocks = block_table.long().gather(1, positions // self._block_size)
        return blocks * self._block_size + positions % self._block_size


def _first_visible(geometry: LayerGeometry, positions: torch.Tensor) -> torch.Tensor:
    """The first position that a query at each of `positions` sees."""
    first = torch.zeros_like(positions)
    if geometry.window is not None:
        first = (positions - geometry.window + 1).clamp_min(0)
    if geometry.chunk is not None:
        first = first.maximum(positions // geometry.chunk * geometry.chunk)
    return first


def _visible(geometry: LayerGeometry, kv_len: int) -> int:
    """At most how many keys the last token of a sequence of `kv_len` sees."""
    limits = [limit for limit in (geometry.window, geometry.chunk) if limit is not None]
    return min(kv_len, *limits) if limits else kv_len


def _attention(
    query: torch.Tensor,  # [N, Q, query_heads, key_dim]
    keys: torch.Tensor,  # [N, L, kv_heads, key_dim]
    values: torch.Tensor,  # [N, L, kv_heads, value_dim]
    seen: torch.Tensor,  # [N, Q, L] bool, at least one per query
    geometry: LayerGeometry,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[N, Q, query_heads, value_dim] in the query's dtype, computed in float32."""
    rows, queries, heads, _ = query.shape
    kv_heads = geometry.kv_heads
    groups = heads // kv_heads
    # One product per kv head, the query heads that share it side by side: [N, kv_heads, groups * Q, ...]
    q = query.float().view(rows, queries, kv_heads, groups, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
    k = keys.float().permute(0, 2, 3, 1)  # [N, kv_heads, key_dim, L]
    v = values.float().transpose(1, 2)  # [N, kv_heads, L, value_dim]
    scores = (q @ k) * geometry.scale
    if geometry.softcap is not None:
        scores = torch.tanh(scores / geometry.softcap) * geometry.softcap
    scores = scores.view(rows, kv_heads, groups, queries, -1)
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        sink = sinks.float().view(1, kv_heads, groups, 1, 1).expand(rows, -1, -1, queries, 1)
        weights = torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1]
    out = weights.flatten(2, 3) @ v  # [N, kv_heads, groups * Q, value_dim]
    out = out.view(rows, kv_heads, groups, queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(rows, queries, heads, -1).to(query.dtype)
