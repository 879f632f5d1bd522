"""A stand-in for the device in tests of scheduling: it knows which prefix was written to each place in the cache.

A row is only run if all of its blocks hold exactly its own tokens' prefix, so a block that was freed too early, shared
wrongly or overwritten is found at once. The next token is a hash of all tokens before it, so it is right only if they
were.
"""

import hashlib
import struct
from collections.abc import Sequence

from engine_core.batch import Batch
from engine_core.cache.blocks import SCRATCH, BlockPool
from engine_core.request import NO_SLOT
from engine_core.scheduler import Sampled, Scheduler
from protocol.prompt_logprobs import PromptLogprobs

VOCABULARY = 50


def next_token(tokens: Sequence[int], seed: int) -> int:
    digest = hashlib.blake2b(repr((tuple(tokens), seed)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % VOCABULARY


def scores(positions: range) -> PromptLogprobs:
    """Log probabilities of a prompt's positions that are known by their values."""
    count = len(positions)
    logprobs = struct.pack(f"<{count}d", *(-float(position) for position in positions))
    return PromptLogprobs(positions.start, 0, logprobs, struct.pack(f"<{count}I", *positions))


def reference(prompt: Sequence[int], seed: int, length: int, eos: Sequence[int]) -> list[int]:
    """What the request yields when nothing disturbs it."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length:
        tokens.append(next_token(tokens, seed))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


class PagedMemory:
    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.written: dict[tuple[int, int], tuple[int, ...]] = {}

    def run(self, batch: Batch) -> list[Sampled]:
        for row in batch.rows:
            for position in range(row.start, row.end):
                self.written[self._place(row.request.blocks, position)] = tuple(row.request.tokens[: position + 1])
        for row in batch.rows:
            assert SCRATCH not in row.request.blocks
            for position in range(row.end):
                held = self.written.get(self._place(row.request.blocks, position))
                assert held == tuple(row.request.tokens[: position + 1]), f"position {position} holds another prefix"
        for row in batch.scoring:
            row.prompt_logprobs.append(scores(row.targets))
        return [Sampled(next_token(request.tokens, request.seed)) for request in batch.sampling]

    def _place(self, blocks: list[int], position: int) -> tuple[int, int]:
        return blocks[position // self.block_size], position % self.block_size


def check_invariants(scheduler: Scheduler, pool: BlockPool, batch: Batch | None) -> None:
    """DESIGN's invariants 3 to 5, whatever has happened."""
    owners: dict[int, int] = {}
    for request in scheduler.running:
        assert request.slot != NO_SLOT
        assert len(set(request.blocks)) == len(request.blocks)
        for block in request.blocks:
            owners[block] = owners.get(block, 0) + 1
    for block in range(1, pool.num_blocks + 1):
        assert pool.references(block) == owners.get(block, 0)
        assert pool.is_free(block) == (block not in owners)
    assert pool.used + pool.available == pool.num_blocks
    assert len({request.slot for request in scheduler.running}) == len(scheduler.running) <= scheduler.max_num_seqs
    assert all(request.slot == NO_SLOT and not request.blocks for request in scheduler.waiting)
    assert not set(map(id, scheduler.running)) & set(map(id, scheduler.waiting))
    if batch is None:
        assert scheduler.running or not scheduler.waiting, "there is work, and room for it, but no step"
    else:
        assert 0 < batch.num_tokens <= scheduler.max_num_batched_tokens
        assert len({id(row.request) for row in batch.rows}) == len(batch.rows) <= scheduler.max_num_seqs
        assert sum(len(row.targets) for row in batch.rows) <= scheduler.max_num_scored
        assert all(row.start < row.targets.start and row.targets.stop <= row.end + 1 for row in batch.scoring)
