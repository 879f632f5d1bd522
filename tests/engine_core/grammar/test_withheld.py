"""Steps that yield no token for some requests, and requests that miss steps: no token changes for it."""

import random
from dataclasses import replace

import pytest

from engine_core.cache.blocks import BlockPool
from engine_core.cache.prefix import PrefixIndex
from engine_core.request import Request
from engine_core.scheduler import Sampled, Scheduler
from protocol.sampling import SamplingParams
from tests.engine_core.paged_memory import PagedMemory, check_invariants, reference

BLOCK = 4


def make(blocks: int) -> Scheduler:
    index = PrefixIndex()
    return Scheduler(
        pool=BlockPool(blocks + 1, on_evict=index.drop),
        index=index,
        block_size=BLOCK,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        eos_token_ids=(),
    )


@pytest.mark.parametrize("blocks", [8, 40])
@pytest.mark.parametrize("flights", [1, 3])
def test_tokens_that_come_late_are_the_same(blocks: int, flights: int) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        scheduler, memory = make(blocks), PagedMemory(BLOCK)
        requests = [
            Request(i, str(i), [rng.randrange(4) for _ in range(rng.randrange(1, 12))], SamplingParams(max_tokens=9))
            for i in range(6)
        ]
        for request in requests:
            scheduler.add(request)
        in_flight: list[tuple[object, list[Sampled]]] = []
        for step in range(2000):
            if scheduler.idle:
                break
            for request in scheduler.running:
                request.held = rng.random() < 0.3
            batch = scheduler.schedule(step)
            if batch is not None:
                check_invariants(scheduler, scheduler.pool, batch)
                assert not any(row.request.held for row in batch.rows)
                late = [replace(each, token=None if rng.random() < 0.4 else each.token) for each in memory.run(batch)]
                in_flight.append((batch, late))
            if len(in_flight) >= flights or (in_flight and batch is None):
                settled, tokens = in_flight.pop(0)
                scheduler.commit(settled, tokens, step)  # type: ignore[arg-type]
        for request in requests:
            assert request.out == reference(request.tokens[: request.prompt_len], 0, 9, ())


def test_a_token_that_is_none_is_no_progress() -> None:
    scheduler = make(8)
    request = Request(0, "r", [1, 2, 3, 4], SamplingParams(max_tokens=3))
    scheduler.add(request)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert scheduler.commit(batch, [Sampled(None)], 0.0) == []
    assert (request.out, request.pending, request.sealed) == ([], 1, 0)
    again = scheduler.schedule(1.0)
    assert again is not None
    assert [(row.start, row.count, row.samples) for row in again.rows] == [(3, 1, True)]
    assert scheduler.commit(again, [Sampled(9)], 1.0) == [request]
    assert (request.out, request.sealed) == ([9], 1)
