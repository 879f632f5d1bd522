"""Continuous batching: before every step, which requests run and with how many tokens each.

There are no phases. A request has tokens whose keys and values are still missing; a step computes some of them for as
many requests as the token budget and the blocks allow: decodes (one token missing) first, then prefills and newcomers
by rank, which is priority and then arrival. When blocks run out, the last in rank gives all of its own back and waits
to be computed again. A newcomer never throws out who runs already, and nobody overtakes a newcomer for whom there are
not enough blocks.

Pure policy: no tensors, no clock, no I/O. `schedule` is the only place where blocks go back.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import count
from typing import Final

from engine_core.batch import Batch, Row
from engine_core.cache.blocks import BlockPool
from engine_core.cache.prefix import PrefixIndex, extend_chain
from engine_core.request import NO_SLOT, Request
from protocol.messages import FinishReason, TokenLogprobs

# Blocks whose hashes are made before the prefix cache is asked again, and how many of them in one step beside requests
# that run: about 2 ms, since a long conversation that was seen before has tens of thousands.
HASHED_AT_ONCE: Final = 64
HASHED_PER_STEP: Final = 2048


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a step yielded for one request; or none, because what it may be was not known in time: then its
    logits are computed again."""

    token: int | None
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class SchedulerCounters:
    """Cumulative, since the engine started."""

    preemptions: int = 0
    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there


def _rank(request: Request) -> tuple[int, float, int]:
    """Who runs first: lower priority number, then first come. No two requests have the same rank."""
    return request.priority, request.arrival_s, request.order


class Scheduler:
    """All requests of the engine that have not ended, and the blocks and slots they hold."""

    def __init__(
        self,
        *,
        pool: BlockPool,
        index: PrefixIndex | None,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos_token_ids: Sequence[int],
        max_num_scored: int | None = None,
    ) -> None:
        """`pool` gives evicted blocks to `index`; without an index there is no prefix cache. `max_num_scored` prompt
        positions of a step, or as many as there are, may have their log probabilities computed."""
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError("max_num_batched_tokens must hold a token for each of max_num_seqs")
        self.counters = SchedulerCounters()
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_scored = max_num_batched_tokens if max_num_scored is None else max_num_scored
        self.running: list[Request] = []  # these two sorted by rank
        self.waiting: list[Request] = []
        self._index = index
        self._block_size = block_size
        self._eos = frozenset(eos_token_ids)
        self._free_slots = list(range(max_num_seqs))
        self._waiting_of: Counter[str] = Counter()  # sequences per request id
        self._arrivals = count()
        self._short_of_blocks = False  # in the last step that was made: whoever waits, waits for blocks
        self._hashes_left = HASHED_PER_STEP  # of the step that is being made

    # ------------------------------------------------------------------------------------------------ requests

    @property
    def idle(self) -> bool:
        """Nothing to run, and nothing to give back: an ended request holds its blocks until the next `schedule`."""
        return not self.running and not self.waiting

    @property
    def queued_requests(self) -> int:
        """Requests (not sequences) beyond those that may come in with the next step."""
        return max(0, len(self._waiting_of) - (0 if self._short_of_blocks else len(self._free_slots)))

    @property
    def queued_tokens(self) -> int:
        return sum(request.pending for request in self.waiting)

    def add(self, request: Request) -> None:
        if request.order < 0:
            request.order = next(self._arrivals)
        insort(self.waiting, request, key=_rank)
        self._waiting_of[request.rid] += 1

    def end(self, request: Request, finish: FinishReason | None = None) -> None:
        """The request yields no further token: finished, or with no reason aborted. May be told twice. What it holds
        goes back when no step in flight uses it."""
        if request.ended:
            return
        request.ended = True
        request.finish = finish
        if request.slot == NO_SLOT:
            self._unqueue(request)

    # ------------------------------------------------------------------------------------------------ a step

    def schedule(self, now_s: float) -> Batch | None:
        """The next step, or None if there is nothing that could run. Requests in it have it in flight."""
        self._retire()
        batch = Batch()
        budget = self.max_num_batched_tokens
        preemptions = self.counters.preemptions
        decodes = [request for request in self.running if request.decoding]
        prefills = [request for request in self.running if not request.decoding]
        for request in decodes:
            budget -= self._grow(request, budget, batch)
        newcomers = list(self.waiting) if self._free_slots else []
        self._short_of_blocks = False
        self._hashes_left = HASHED_PER_STEP
        for request in merge(prefills, newcomers, key=_rank):
            if not budget:
                break
            self._short_of_blocks |= self.counters.preemptions > preemptions
            if request.slot == NO_SLOT and not (self._short_of_blocks or self._follows(request)):
                if not self._within_scored(request, batch):
                    continue
                self._admit(request, batch, now_s)
            budget -= self._grow(request, budget, batch)
        for row in batch.rows:
            row.request.in_flight += 1
        return batch if batch.rows else None

    def commit(self, batch: Batch, sampled: Sequence[Sampled], now_s: float) -> list[Request]:
        """Takes in what the step yielded, one entry per request of `batch.sampling`. Returns the requests with a new
        token. Tokens of requests that ended meanwhile are dropped."""
        advanced = []
        tokens = iter(sampled)
        for row in batch.rows:
            request = row.request
            request.in_flight -= 1
            result = next(tokens) if row.samples else None
            withheld = result is not None and result.token is None
            request.computed -= withheld
            self._seal(request, row.end - withheld)
            if request.prompt_logprobs is not None and not request.ended:
                request.prompt_logprobs += row.prompt_logprobs
            if result is not None and result.token is not None and not request.ended:
                self._append(request, result.token, result.logprobs, now_s)
                advanced.append(request)
        return advanced

    # ------------------------------------------------------------------------------------------------ policy

    def _grow(self, request: Request, budget: int, batch: Batch) -> int:
        """Gives a running request its next tokens and the blocks for them, preempting the last comer where it must.
        Returns what that takes from the budget."""
        tokens = min(request.pending, budget, self._within_scored(request, batch))
        if tokens <= 0 or request.slot == NO_SLOT or request.in_flight or request.ended or request.held:
            return 0
        returned = 0
        while (lacking := self._lacking(request, tokens)) > self.pool.available:
            # Whatever is in flight keeps its blocks. The request itself is a candidate.
            victim = max((other for other in self.running if not other.in_flight), key=_rank)
            returned += self._preempt(victim, batch)
            if victim is request:
                return -returned
        if lacking:
            request.blocks += self.pool.allocate(lacking)
        targets = request.targets(tokens)
        batch.rows.append(Row(request, request.computed, tokens, samples=tokens == request.pending, targets=targets))
        request.computed += tokens
        return tokens - returned

    def _within_scored(self, request: Request, batch: Batch) -> int:
        """How many of its tokens fit beside the positions that the batch already scores."""
        if request.unscored >= request.prompt_len:
            return request.pending
        return request.within(self.max_num_scored - sum(len(row.targets) for row in batch.rows))

    def _admit(self, request: Request, batch: Batch, now_s: float) -> None:
        """Gives a waiting request a slot, if there are blocks for all of its tokens so far. Those that running prefills
        still have to come are not counted on, and neither is one for each sequence to grow into: whoever came in with
        these would be the next to be thrown out."""
        reserved = sum(max(1, self._lacking(other, other.pending)) for other in self.running)
        shared = self._match(request)
        if shared is None:
            return
        fresh = self._blocks_for(len(request.tokens)) - len(shared)
        revived = sum(self.pool.is_free(block) for block in shared)
        self._short_of_blocks = fresh + revived > self.pool.available - reserved
        if not self._short_of_blocks and self._free_slots:
            self._start(request, shared, batch, now_s)

    def _follows(self, request: Request) -> bool:
        """A sibling is computing the prompt they share: its blocks are worth waiting for."""
        leader = request.leader
        return (
            self._index is not None
            and leader is not None
            and leader.slot != NO_SLOT
            and not leader.ended
            and leader.sealed < leader.prompt_len // self._block_size
        )

    def _match(self, request: Request) -> list[int] | None:
        """Blocks that already hold the start of the request. Its last token is always computed, for its logits, and so
        is every prompt position whose logits are still wanted. None if to find out would keep those who run waiting:
        the next steps go on with it."""
        if self._index is None:
            return []
        full = (len(request.tokens) - 1) // self._block_size
        if request.unscored < request.prompt_len:
            full = (request.unscored - 1) // self._block_size
        if request.leader is not None:
            known = request.leader.hashes[: request.prompt_len // self._block_size]
            request.hashes = max(request.hashes, known, key=len)
        found: list[int] = []
        while True:
            found += self._index.match(request.hashes[len(found) : full])
            hashed = min(len(request.hashes), full)
            if len(found) < hashed or hashed == full:
                return found
            if self._hashes_left <= 0 and self.running:
                return None
            self._hashes_left -= HASHED_AT_ONCE
            more = min(hashed + HASHED_AT_ONCE, full)
            extend_chain(request.hashes, request.tokens, self._block_size, request.salt, more)

    def _start(self, request: Request, shared: list[int], batch: Batch, now_s: float) -> None:
        self._unqueue(request)
        self.pool.share(shared)
        request.blocks = shared
        request.sealed = len(shared)
        request.computed = len(shared) * self._block_size
        request.slot = self._free_slots.pop()
        insort(self.running, request, key=_rank)
        batch.admitted.append(request)
        if self._index is not None and request.prompt_logprobs is None:
            self.counters.prefix_queries += len(request.tokens)
            self.counters.prefix_hits += request.computed
        if request.cached is None:
            request.cached = min(request.computed, request.prompt_len)
            request.first_scheduled_s = now_s

    def _lacking(self, request: Request, tokens: int) -> int:
        """Blocks that its next `tokens` need beyond those it has."""
        return self._blocks_for(request.computed + tokens) - len(request.blocks)

    def _preempt(self, request: Request, batch: Batch) -> int:
        """Back into the queue, in its old place, to be computed again; out of the batch being made, if it is in it.
        Returns the tokens that this takes out of the batch."""
        returned = 0
        for row in [row for row in batch.rows if row.request is request]:
            batch.rows.remove(row)
            returned += row.count
        if request in batch.admitted:
            batch.admitted.remove(request)
        self._leave(request)
        request.computed = 0
        request.preemptions += 1
        self.counters.preemptions += 1
        self.add(request)
        return returned

    def _retire(self) -> None:
        for request in [request for request in self.running if request.ended and not request.in_flight]:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        del self.running[bisect_left(self.running, _rank(request), key=_rank)]
        self.pool.release(request.blocks)
        request.blocks = []
        self._free_slots.append(request.slot)
        request.slot = NO_SLOT

    def _unqueue(self, request: Request) -> None:
        del self.waiting[bisect_left(self.waiting, _rank(request), key=_rank)]
        self._waiting_of[request.rid] -= 1
        if not self._waiting_of[request.rid]:
            del self._waiting_of[request.rid]

    # ------------------------------------------------------------------------------------------------ results

    def _append(self, request: Request, token: int, logprobs: TokenLogprobs | None, now_s: float) -> None:
        request.tokens.append(token)
        if request.logprobs is not None and logprobs is not None:
            request.logprobs.append(logprobs)
        if request.first_token_s is None:
            request.first_token_s = now_s
        sampling = request.sampling
        if request.out_len >= sampling.min_tokens:
            if token in sampling.stop_token_ids:
                request.stop_token = token
                return self.end(request, FinishReason.STOP)
            if token in self._eos and not sampling.ignore_eos:
                return self.end(request, FinishReason.STOP)
        if request.out_len >= sampling.max_tokens:
            return self.end(request, FinishReason.LENGTH)
        return None

    def _seal(self, request: Request, computed: int) -> None:
        """Full blocks whose keys and values are there now may be shared from here on."""
        if self._index is None:
            return
        full = computed // self._block_size
        extend_chain(request.hashes, request.tokens, self._block_size, request.salt, full)
        for position in range(request.sealed, full):
            if self._index.insert(request.hashes[position], request.blocks[position]):
                self.pool.seal(request.blocks[position])
        request.sealed = max(request.sealed, full)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_size)
