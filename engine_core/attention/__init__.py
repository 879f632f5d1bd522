"""Paged attention, as the model sees it: a backend owns the layout of its cache and attends over it.

Every sequence's keys and values lie in blocks of `block_size` tokens; a block table says which. In a step all tokens
of all sequences form one flat batch: rows (sequences) of one or more query tokens each. A backend first writes the keys
and values of all of them, then attends, so that a chunk's tokens see each other through the cache.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """What one attention layer needs, read off its own call (never off the configuration)."""

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: int | None = None  # a query sees itself and the window - 1 tokens before it
    chunk: int | None = None  # a query sees only keys of its own chunk: position // chunk
    softcap: float | None = None  # scores become softcap * tanh(scores / softcap)
    sinks: bool = False  # one learned logit per query head joins the softmax and carries no value


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where this step's tokens are. T tokens in N rows; all integers on the device of the cache.

    The keys of row n are the first `kv_lens[n]` tokens of its sequence, the row's own included; its queries are the
    last `query_starts[n + 1] - query_starts[n]` of them.
    """

    positions: torch.Tensor  # [T] int64, of each token in its sequence
    slots: torch.Tensor  # [T] int64, block * block_size + offset: where its key and value go
    query_starts: torch.Tensor  # [N + 1] int32
    kv_lens: torch.Tensor  # [N] int32
    block_table: torch.Tensor  # [N, W] int32, entries past a row's last block are 0
    max_query_len: int
    max_kv_len: int


class LayerCache(Protocol):
    """One layer's keys and values, in a layout only its backend knows."""

    @property
    def nbytes(self) -> int: ...


class AttentionBackend(Protocol):
    """One way to attend. Stateless between steps but for what `plan` prepares."""

    name: str

    def allocate(self, geometry: LayerGeometry, num_blocks: int) -> LayerCache:
        """Zeroed cache of `num_blocks` blocks. Block 0 is scratch: no sequence ever owns it."""

    def block_bytes(self, geometry: LayerGeometry) -> int:
        """Bytes of one block of one layer."""

    def begin(self, plan: AttentionPlan) -> None:
        """Once per step, before any layer."""

    def attend(
        self,
        cache: LayerCache,
        geometry: LayerGeometry,
        query: torch.Tensor,  # [T, query_heads, key_dim]
        key: torch.Tensor,  # [T, kv_heads, key_dim]
        value: torch.Tensor,  # [T, kv_heads, value_dim]
        sinks: torch.Tensor | None,  # [query_heads]
    ) -> torch.Tensor:
        """Writes key and value, then attends. Returns [T, query_heads, value_dim] in the query's dtype."""
