"""Runs batches: inputs, model, sampler. The only part of the engine that knows all three."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from engine_core.batch import Batch, Row
from engine_core.cache.kv import KVCache
from engine_core.inputs import InputBuilder, Targets
from engine_core.model.adapter import ModelAdapter
from engine_core.request import Request
from engine_core.sampling.prompt import Scored
from engine_core.sampling.sampler import SampledTokens
from engine_core.scheduler import Sampled
from protocol.messages import TokenLogprobs


class TokenSampler(Protocol):
    """Chooses the next tokens [R] from logits [R, vocab_size]; keeps parameters per slot. Tells how likely the tokens
    [S] of prompts and the `top` best ones are under logits [S, vocab_size]."""

    def admit(self, request: Request) -> None: ...

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> SampledTokens: ...

    def score(self, logits: torch.Tensor, tokens: torch.Tensor, top: int) -> Scored: ...


@dataclass(frozen=True, slots=True)
class Pending:
    """A step on its way through the device. `tokens` [R] and `scored`, the targets of `scoring` in order, are on the
    host and valid once `done` has happened; not those of the rows that are `withheld`."""

    tokens: torch.Tensor
    logprobs: Sequence[TokenLogprobs | None] | None
    done: torch.cuda.Event | None
    scored: Scored | None = None
    scoring: Sequence[Row] = ()
    withheld: Sequence[int] = ()


class ModelRunner:
    """Owned by one thread. A step may be launched while the one before is not collected: its tokens stay on the device,
    and a row whose last token the host lacks takes it from there."""

    def __init__(
        self,
        adapter: ModelAdapter,
        cache: KVCache,
        sampler: TokenSampler,
        *,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self._adapter = adapter
        self._cache = cache
        self._sampler = sampler
        self._inputs = InputBuilder(max_num_seqs, max_model_len, cache.block_size, adapter.device)
        self._last_tokens = torch.zeros(max_num_seqs, dtype=torch.int64, device=adapter.device)

    def launch(self, batch: Batch) -> Pending:
        """Starts the step, and on the CPU finishes it. The batch must not be empty."""
        with torch.inference_mode():
            for request in batch.admitted:
                self._sampler.admit(request)
            step = self._inputs.build(batch)
            ids = step.input_ids
            if step.late is not None:
                ids[step.late.at] = self._last_tokens[step.late.slots]
            rows, targets = step.logits_rows, step.targets
            wanted = rows if targets is None else torch.cat((rows, targets.at))
            logits = self._adapter.forward(ids, step.plan, wanted, self._cache.backend, self._cache.layers)
            scored = None if targets is None else self._score(logits[len(rows) :], targets, batch.scoring)
            requests = batch.sampling
            if requests:
                sampled = self._sampler.sample(logits[: len(rows)], requests)
                self._last_tokens[step.slots] = sampled.tokens
            elif scored is None:
                return Pending(rows.new_empty(0, device="cpu"), None, None)
            else:
                sampled = SampledTokens(rows.new_empty(0), None)
            return _to_host(sampled, scored, batch.scoring)

    def _score(self, logits: torch.Tensor, targets: Targets, rows: Sequence[Row]) -> Scored:
        top = max(row.request.sampling.prompt_logprobs or 0 for row in rows)
        return self._sampler.score(logits, targets.tokens, top)

    def collect(self, pending: Pending) -> list[Sampled]:
        """Waits for the step. One entry per request of its batch's `sampling`, in order. The rows of its `scoring` get
        their log probabilities."""
        if pending.done is not None:
            pending.done.synchronize()
        start = 0
        for row in pending.scoring:
            assert pending.scored is not None
            top = row.request.sampling.prompt_logprobs or 0
            row.prompt_logprobs += pending.scored.portions(start, row.targets, top)
            start += len(row.targets)
        tokens: list[int | None] = pending.tokens.tolist()
        for row_number in pending.withheld:
            tokens[row_number] = None
        logprobs = pending.logprobs if pending.logprobs is not None else [None] * len(tokens)
        return [Sampled(token, entry) for token, entry in zip(tokens, logprobs, strict=True)]


def _to_host(sampled: SampledTokens, scored: Scored | None, scoring: Sequence[Row]) -> Pending:
    """Starts the copy without waiting for it."""
    if sampled.tokens.device.type != "cuda":
        return Pending(sampled.tokens, sampled.logprobs, None, scored, scoring, sampled.withheld)
    host = torch.empty(sampled.tokens.shape, dtype=sampled.tokens.dtype, pin_memory=True)
    host.copy_(sampled.tokens, non_blocking=True)
    scored = None if scored is None else scored.to_host()
    done = torch.cuda.current_stream(sampled.tokens.device).record_event()
    return Pending(host, sampled.logprobs, done, scored, scoring, sampled.withheld)
