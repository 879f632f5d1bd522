"""Drives the real runner, inputs and KV cache with hand-made batches: no scheduler, no sampler but argmax."""

from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from engine_core.attention import AttentionBackend
from engine_core.attention.reference import ReferenceAttention
from engine_core.batch import Batch, Row
from engine_core.cache.kv import KVCache
from engine_core.model.adapter import ModelAdapter
from engine_core.model.loader import LoadedModel
from engine_core.model.quirks import settle_model
from engine_core.model.source import ModelSource
from engine_core.request import Request
from engine_core.runner import ModelRunner, Pending
from engine_core.sampling.sampler import SampledTokens
from protocol.sampling import SamplingParams

CPU = torch.device("cpu")
BLOCK = 4  # small, so that short sequences span many
KERNEL_BLOCK = 16  # the least that the C++ kernel takes
BACKENDS = ("reference", "cpu")


def make_backend(name: str, block_size: int, dtype: torch.dtype) -> AttentionBackend:
    """One of BACKENDS; skips the test where it does not exist."""
    if name == "reference":
        return ReferenceAttention(block_size, dtype, CPU)
    cpu = pytest.importorskip("engine_core.attention.cpu")
    if not cpu.CpuAttention.available(dtype):
        pytest.skip("the C++ kernel can't be built here")
    backend: AttentionBackend = cpu.CpuAttention(block_size, dtype)
    return backend


class Argmax:
    """The sampler's interface, greedy. Keeps every step's logits for a closer look."""

    def __init__(self) -> None:
        self.admitted: list[Request] = []
        self.logits: list[torch.Tensor] = []

    def admit(self, request: Request) -> None:
        self.admitted.append(request)

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> SampledTokens:
        assert logits.shape[0] == len(requests)
        assert logits.dtype == torch.float32
        self.logits.append(logits.clone())
        return SampledTokens(logits.argmax(-1), None)


class Engine:
    """A model with its runner, and blocks handed out by counting."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_model_len: int = 64,
        max_num_seqs: int = 8,
        num_blocks: int = 128,
        block_size: int | None = None,
        backend: str = "reference",
    ) -> None:
        model.eval()
        settle_model(model)
        dtype = next(model.parameters()).dtype
        loaded = LoadedModel(model, model.config, ModelSource("test"), dtype, CPU)
        self.adapter = ModelAdapter(loaded, max_model_len)
        block_size = block_size or (BLOCK if backend == "reference" else KERNEL_BLOCK)
        self.backend = make_backend(backend, block_size, dtype)
        self.cache = KVCache(self.backend, self.adapter.geometries, num_blocks, block_size)
        self.sampler = Argmax()
        self.runner = ModelRunner(
            self.adapter, self.cache, self.sampler, max_num_seqs=max_num_seqs, max_model_len=max_model_len
        )
        self.free_blocks = list(range(num_blocks - 1, 0, -1))
        self.free_slots = list(range(max_num_seqs - 1, -1, -1))

    def admit(self, request: Request) -> Request:
        request.slot = self.free_slots.pop()
        return request

    def release(self, request: Request) -> None:
        self.free_blocks.extend(reversed(request.blocks))
        self.free_slots.append(request.slot)
        request.blocks = []
        request.computed = 0

    def row(self, request: Request, count: int) -> Row:
        """The next `count` tokens of the request, with the blocks for them. Counts them as computed."""
        start = request.computed
        request.computed += count
        while len(request.blocks) * self.cache.block_size < request.computed:
            request.blocks.append(self.free_blocks.pop())
        return Row(request, start, count, samples=request.computed >= len(request.tokens))

    def step(self, rows: Sequence[Row], admitted: Sequence[Request] = ()) -> None:
        """Runs it and appends what was sampled."""
        self.settle(self.launch(rows, admitted))

    def launch(self, rows: Sequence[Row], admitted: Sequence[Request] = ()) -> tuple[Batch, Pending]:
        batch = Batch(list(rows), list(admitted))
        return batch, self.runner.launch(batch)

    def settle(self, flight: tuple[Batch, Pending]) -> None:
        batch, pending = flight
        sampled = self.runner.collect(pending)
        for request, entry in zip(batch.sampling, sampled, strict=True):
            request.tokens.append(entry.token)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, chunk: int | None = None) -> list[list[int]]:
        """All prompts at once, prefilled `chunk` tokens a step; short ones decode beside the chunks of long ones."""
        requests = [self.admit(make_request(prompt, handle)) for handle, prompt in enumerate(prompts)]
        admitted = requests
        running = list(requests)
        while running:
            rows = [self.row(r, min(chunk or r.pending, r.pending)) for r in running]
            self.step(rows, admitted)
            admitted = []
            running = [r for r in running if r.out_len < max_tokens]
        for request in requests:
            self.release(request)
        return [request.out for request in requests]


def make_request(prompt: Sequence[int], handle: int = 0) -> Request:
    return Request(handle, f"test-{handle}", prompt, SamplingParams(max_tokens=64, temperature=0.0))


def reference(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What transformers' own generate gives, greedy, without stopping."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
            pad_token_id=0,
            eos_token_id=None,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens
