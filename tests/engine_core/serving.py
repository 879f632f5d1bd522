"""A whole engine in the process: real scheduler, runner, cache and sampler around a model, without the wire."""

from collections import deque
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from engine_core.attention import AttentionBackend
from engine_core.batch import Batch
from engine_core.cache.blocks import BlockPool
from engine_core.cache.kv import KVCache
from engine_core.cache.prefix import PrefixIndex
from engine_core.model.adapter import ModelAdapter
from engine_core.model.loader import LoadedModel
from engine_core.model.quirks import settle_model
from engine_core.model.source import ModelSource
from engine_core.request import Request
from engine_core.runner import ModelRunner, Pending
from engine_core.sampling.sampler import Sampler
from engine_core.scheduler import Scheduler
from protocol.sampling import SamplingParams
from tests.engine_core.paged_memory import check_invariants

CPU = torch.device("cpu")
MAX_STEPS = 10_000


class Serving:
    """`adapter` may be shared by several of these; the cache is each one's own."""

    def __init__(
        self,
        adapter: ModelAdapter,
        backend: AttentionBackend,
        block_size: int,
        *,
        max_model_len: int,
        num_blocks: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool = True,
        max_num_scored: int | None = None,
        overlap: int = 0,
    ) -> None:
        cache = KVCache(backend, adapter.geometries, num_blocks, block_size)
        index = PrefixIndex() if prefix_caching else None
        self.scheduler = Scheduler(
            pool=BlockPool(num_blocks, on_evict=index.drop if index is not None else None),
            index=index,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            eos_token_ids=[],
            max_num_scored=max_num_scored,
        )
        sampler = Sampler(adapter.vocab_size, max_num_seqs, [], adapter.device)
        self.runner = ModelRunner(adapter, cache, sampler, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        self.steps = 0
        self.overlap = overlap

    def run(self, requests: Sequence[Request]) -> list[list[int]]:
        """Outputs of requests that all come at once. As in the engine's loop, `overlap` steps are launched before an
        earlier one is collected."""
        for request in requests:
            self.scheduler.add(request)
        flights: deque[tuple[Batch, Pending]] = deque()
        while not self.scheduler.idle:
            assert self.steps < MAX_STEPS
            batch = self.scheduler.schedule(self.steps)
            if batch is not None or not flights:
                check_invariants(self.scheduler, self.scheduler.pool, batch)
            if batch is not None:
                flights.append((batch, self.runner.launch(batch)))
            if len(flights) > self.overlap or (flights and batch is None):
                settled, pending = flights.popleft()
                self.scheduler.commit(settled, self.runner.collect(pending), self.steps)
            self.steps += 1
        assert self.scheduler.pool.used == 0
        return [request.out for request in requests]


def adapt(model: PreTrainedModel, max_model_len: int) -> ModelAdapter:
    """The model where it lies, in the type that it has."""
    settle_model(model)
    weight = next(model.parameters())
    return ModelAdapter(
        LoadedModel(model, model.config, ModelSource("test"), weight.dtype, weight.device), max_model_len
    )


def greedy(prompt: Sequence[int], max_tokens: int, handle: int = 0) -> Request:
    return Request(handle, f"greedy-{handle}", prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))


def seeded(prompt: Sequence[int], max_tokens: int, handle: int = 0, seed: int = 0, **knobs: float) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, **knobs)  # type: ignore[arg-type]
    return Request(handle, f"seeded-{handle}", prompt, sampling, seed=seed)
