import random

import pytest

from engine_core.cache.blocks import BlockPool
from engine_core.cache.prefix import PrefixIndex
from engine_core.request import NO_SLOT, Request
from engine_core.scheduler import HASHED_AT_ONCE, Scheduler
from protocol.messages import FinishReason
from protocol.sampling import SamplingParams
from tests.engine_core.paged_memory import VOCABULARY, PagedMemory, check_invariants, next_token, reference

EOS = (7,)
BLOCK = 4


def make(
    *, blocks: int = 64, seqs: int = 8, budget: int = 32, caching: bool = True, scored: int | None = None
) -> Scheduler:
    index = PrefixIndex() if caching else None
    pool = BlockPool(blocks + 1, on_evict=index.drop if index is not None else None)
    return Scheduler(
        pool=pool,
        index=index,
        block_size=BLOCK,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        eos_token_ids=EOS,
        max_num_scored=scored,
    )


def ask(prompt: list[int], max_tokens: int = 8, handle: int = 0, **options: object) -> Request:
    sampling = SamplingParams(
        max_tokens=max_tokens,
        ignore_eos=bool(options.pop("ignore_eos", False)),
        prompt_logprobs=options.pop("prompt_logprobs", None),  # type: ignore[arg-type]
    )
    return Request(handle, str(options.pop("rid", handle)), prompt, sampling, **options)  # type: ignore[arg-type]


def rank(request: Request) -> tuple[int, float, int]:
    return request.priority, request.arrival_s, request.order


class Machine:
    """Scheduler and memory, stepped by hand."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.memory = PagedMemory(BLOCK)
        self.steps = 0

    def step(self) -> list[tuple[Request, int]]:
        """(request, tokens) of each row."""
        before = [(request, request.preemptions) for request in self.scheduler.running]
        batch = self.scheduler.schedule(self.steps)
        check_invariants(self.scheduler, self.scheduler.pool, batch)
        thrown_out = [request for request, preemptions in before if request.preemptions > preemptions]
        for request in thrown_out:
            assert all(rank(request) > rank(other) for other in self.scheduler.running), "a worse one goes on"
        if batch is None:
            return []
        rows = [(row.request, row.count) for row in batch.rows]
        self.scheduler.commit(batch, self.memory.run(batch), self.steps)
        self.steps += 1
        return rows

    def finish(self) -> None:
        while not self.scheduler.idle:
            assert self.steps < 10_000
            self.step()


def test_a_request_runs_to_its_end() -> None:
    machine = Machine(make())
    request = ask([1, 2, 3], max_tokens=20)
    machine.scheduler.add(request)
    machine.finish()
    assert request.out == reference([1, 2, 3], 0, 20, EOS)
    assert request.finish is (FinishReason.STOP if request.out[-1] in EOS else FinishReason.LENGTH)
    assert machine.scheduler.pool.used == 0


def test_decodes_run_beside_a_chunked_prefill() -> None:
    machine = Machine(make(budget=8))
    first = ask([1] * 4, max_tokens=12, handle=1, ignore_eos=True)
    machine.scheduler.add(first)
    machine.step()
    long = ask([2] * 30, handle=2, ignore_eos=True)
    machine.scheduler.add(long)
    for _ in range(4):
        assert machine.step() == [(first, 1), (long, 7)]
    assert machine.step() == [(first, 1), (long, 2)]
    assert first.out_len == 6
    assert long.out_len == 1


def test_lower_priority_number_runs_first() -> None:
    machine = Machine(make(seqs=1))
    late, early = ask([1, 2], handle=1, priority=5), ask([3, 4], handle=2, priority=-1)
    machine.scheduler.add(late)
    machine.scheduler.add(early)
    assert machine.step() == [(early, 2)]


def test_the_last_comer_is_preempted_and_still_right() -> None:
    machine = Machine(make(blocks=8, caching=False))
    requests = [ask([handle] * 8, max_tokens=20, handle=handle, ignore_eos=True) for handle in range(3)]
    for request in requests:
        machine.scheduler.add(request)
    machine.finish()
    assert machine.scheduler.counters.preemptions > 0
    assert requests[0].preemptions == 0
    for request in requests:
        assert request.out == reference([request.handle] * 8, 0, 20, ())


def test_a_high_priority_throws_out_a_low_one_that_came_before() -> None:
    machine = Machine(make(blocks=8, caching=False))
    low = ask([1] * 8, max_tokens=20, handle=1, priority=5, ignore_eos=True)
    high = ask([2] * 8, max_tokens=20, handle=2, priority=-5, ignore_eos=True)
    machine.scheduler.add(low)
    machine.step()
    machine.scheduler.add(high)
    machine.finish()
    assert (high.preemptions, low.preemptions) == (0, 1)
    assert low.out == reference([1] * 8, 0, 20, ())


def test_a_high_priority_newcomer_has_its_share_before_a_low_prefill() -> None:
    machine = Machine(make(budget=8))
    low = ask([1] * 60, handle=1, priority=5)
    machine.scheduler.add(low)
    machine.step()
    high = ask([2] * 3, handle=2, priority=-5)
    machine.scheduler.add(high)
    assert machine.step() == [(high, 3), (low, 5)]


def test_siblings_of_a_replay_share_its_prompt() -> None:
    machine = Machine(make(budget=64))
    prompt = list(range(10, 10 + 4 * BLOCK))
    leader = ask(prompt, handle=1, rid="r", out=[5, 6])
    sibling = ask(prompt, handle=2, rid="r", out=[5, 7], leader=leader)
    machine.scheduler.add(leader)
    machine.scheduler.add(sibling)
    assert machine.step() == [(leader, 4 * BLOCK + 2)]
    machine.step()
    assert sibling.cached == 4 * BLOCK


def test_a_prefix_is_found_again_but_its_last_token_is_computed() -> None:
    machine = Machine(make())
    prompt = list(range(10, 10 + 4 * BLOCK))
    first, second = ask(prompt, handle=1), ask(prompt, handle=2)
    machine.scheduler.add(first)
    machine.finish()
    machine.scheduler.add(second)
    machine.finish()
    assert first.cached == 0
    assert second.cached == 3 * BLOCK
    assert second.out == first.out


def test_a_long_conversation_is_looked_up_beside_those_who_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing all of it in one step would keep them waiting."""
    per_step = 2 * HASHED_AT_ONCE
    monkeypatch.setattr("engine_core.scheduler.HASHED_PER_STEP", per_step)
    blocks = 2 * per_step + 50
    prompt = [2] * (blocks * BLOCK + 1)
    machine = Machine(make(blocks=blocks + 64, budget=len(prompt)))
    machine.scheduler.add(ask(prompt, max_tokens=1, handle=1))
    assert [count for _, count in machine.step()] == [len(prompt)]
    runs = ask([3], max_tokens=20, handle=2, ignore_eos=True)
    machine.scheduler.add(runs)
    machine.step()
    again = ask(prompt, max_tokens=1, handle=3)
    machine.scheduler.add(again)
    hashed = [0]
    while again.slot == NO_SLOT:
        rows = machine.step()
        assert rows[0] == (runs, 1)
        hashed.append(len(again.hashes))
        assert hashed[-1] - hashed[-2] <= per_step
    assert hashed[-1] == blocks
    assert again.cached == blocks * BLOCK
    alone = Machine(make(blocks=blocks + 64, budget=len(prompt)))
    alone.scheduler.add(ask(prompt, max_tokens=1, handle=1))
    alone.finish()
    alone.scheduler.add(again := ask(prompt, max_tokens=1, handle=2))
    assert alone.step() == [(again, 1)]


def test_a_new_prompt_is_not_hashed_to_find_that_nobody_knows_it() -> None:
    machine = Machine(make(blocks=500, budget=8))
    request = ask([2] * 1000)
    machine.scheduler.add(request)
    machine.step()
    assert len(request.hashes) == HASHED_AT_ONCE


def test_another_salt_finds_nothing() -> None:
    machine = Machine(make())
    prompt = list(range(10, 30))
    for handle, salt in enumerate((b"a", b"b")):
        request = ask(prompt, handle=handle, salt=salt)
        machine.scheduler.add(request)
        machine.finish()
        assert request.cached == 0


def test_output_is_cached_too() -> None:
    machine = Machine(make())
    first = ask([1, 2, 3], max_tokens=14, ignore_eos=True)
    machine.scheduler.add(first)
    machine.finish()
    follow_up = ask([*first.tokens, 5], handle=2)
    machine.scheduler.add(follow_up)
    machine.finish()
    assert follow_up.cached == 16  # the output's last token was never fed back


def test_siblings_wait_for_one_prefill() -> None:
    machine = Machine(make())
    prompt = list(range(10, 10 + 2 * BLOCK + 1))
    leader = ask(prompt, handle=1, rid="r", seed=1)
    sibling = ask(prompt, handle=2, rid="r", seed=2, leader=leader)
    machine.scheduler.add(leader)
    machine.scheduler.add(sibling)
    assert machine.step() == [(leader, len(prompt))]
    assert (sibling, 1) in machine.step()
    assert sibling.cached == 2 * BLOCK
    machine.finish()
    assert sibling.out == reference(prompt, 2, 8, EOS)


def test_a_sibling_outlives_its_leader() -> None:
    machine = Machine(make(budget=8))
    prompt = list(range(10, 30))
    leader = ask(prompt, handle=1, rid="r")
    sibling = ask(prompt, handle=2, rid="r", leader=leader)
    machine.scheduler.add(leader)
    machine.scheduler.add(sibling)
    machine.step()
    machine.scheduler.end(leader)
    machine.finish()
    assert sibling.out == reference(prompt, 0, 8, EOS)


def test_an_abort_in_flight_frees_after_the_step() -> None:
    scheduler, memory = make(), PagedMemory(BLOCK)
    request = ask([1, 2, 3, 4, 5])
    scheduler.add(request)
    batch = scheduler.schedule(0)
    assert batch is not None
    scheduler.end(request)
    assert scheduler.schedule(0) is None
    assert scheduler.pool.used == 2
    assert scheduler.commit(batch, memory.run(batch), 0) == []
    assert scheduler.schedule(0) is None
    assert scheduler.pool.used == 0
    assert request.out == []
    assert scheduler.idle


def test_a_replay_goes_on_where_it_was() -> None:
    undisturbed = reference([1, 2, 3], 5, 12, ())
    machine = Machine(make())
    request = ask([1, 2, 3], max_tokens=12, seed=5, out=undisturbed[:5], ignore_eos=True)
    machine.scheduler.add(request)
    machine.finish()
    assert request.out == undisturbed
    assert request.finish is FinishReason.LENGTH


def test_stop_token_and_min_tokens() -> None:
    first = next_token([1, 2], 0)
    for min_tokens, length in ((0, 1), (3, 3)):
        machine = Machine(make())
        sampling = SamplingParams(max_tokens=3, stop_token_ids=(first,), min_tokens=min_tokens, ignore_eos=True)
        request = Request(0, "r", [1, 2], sampling)
        machine.scheduler.add(request)
        machine.finish()
        assert request.out_len == length
        assert (request.stop_token == first) == (length == 1 or request.out[-1] == first)


def test_queue_counts_requests_not_sequences() -> None:
    scheduler = make(seqs=2)
    for handle in range(6):
        scheduler.add(ask([1], handle=handle, rid=str(handle // 2)))
    assert scheduler.queued_requests == 1
    assert scheduler.queued_tokens == 6


def scored(request: Request) -> list[float]:
    """The log probabilities that a request has of its prompt, in order."""
    return [entry.logprob for portion in request.prompt_logprobs or () for entry in portion.entries(0)]


def test_no_more_positions_are_scored_in_a_step_than_may_be() -> None:
    machine = Machine(make(scored=5))
    long = ask([1] * 12, handle=1, prompt_logprobs=0, ignore_eos=True)
    other = ask([2] * 9, handle=2, prompt_logprobs=0, ignore_eos=True)
    plain = ask([3] * 9, handle=3, ignore_eos=True)
    for request in (long, other, plain):
        machine.scheduler.add(request)
    assert machine.step() == [(long, 5), (plain, 9)], "who waits for logits holds up nobody and holds nothing"
    assert other in machine.scheduler.waiting
    assert machine.step() == [(plain, 1), (long, 5)]
    assert machine.step() == [(plain, 1), (long, 2), (other, 4)], "the last of a prompt scores nothing"
    assert machine.step() == [(long, 1), (plain, 1), (other, 5)]
    machine.finish()
    assert scored(long) == [-float(position) for position in range(1, 12)]
    assert scored(other) == [-float(position) for position in range(1, 9)]


def test_what_is_scored_is_not_scored_again() -> None:
    machine = Machine(make(blocks=8, scored=2))
    elder = ask([1] * 8, handle=1, max_tokens=20, ignore_eos=True)
    request = ask(list(range(20, 38)), handle=2, prompt_logprobs=0)
    machine.scheduler.add(elder)
    machine.scheduler.add(request)
    while not request.preemptions and not machine.scheduler.idle:
        machine.step()
    assert 10 <= len(scored(request)) < 17
    machine.finish()
    assert scored(request) == [-float(position) for position in range(1, 18)]
    assert request.out == reference(list(range(20, 38)), 0, 8, EOS)


@pytest.mark.parametrize("caching", [True, False], ids=["prefix-cache", "no-cache"])
def test_thousand_random_lives(caching: bool) -> None:
    """Random additions, aborts and steps in caches that are far too small: whatever is not aborted ends as if it had
    been alone, and the invariants hold after every step."""
    preemptions = hits = 0
    for seed in range(1000):
        rng = random.Random(seed)
        seqs = rng.randint(1, 6)
        scheduler = make(
            blocks=rng.randint(8, 14),
            seqs=seqs,
            budget=rng.randint(max(seqs, 2), 24),
            caching=caching,
            scored=rng.choice((1, 3, 7, None)),
        )
        machine = Machine(scheduler)
        requests: list[Request] = []
        prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 14))] for _ in range(3)]
        for turn in range(rng.randint(5, 60)):
            action = rng.random()
            if action < 0.35:
                prompt = (rng.choice(prompts) + [rng.randrange(VOCABULARY)] * rng.randint(0, 5))[:18]
                request = ask(
                    prompt,
                    max_tokens=rng.randint(1, 12),
                    handle=turn,
                    seed=rng.randrange(3),
                    priority=rng.choice((0, 0, 0, 1, -1)),
                    salt=rng.choice((b"", b"", b"tenant")),
                    arrival_s=turn,
                    prompt_logprobs=rng.choice((None, None, 0)),
                    leader=rng.choice(requests) if requests and rng.random() < 0.2 else None,
                )
                if request.leader is not None and request.leader.tokens[: request.leader.prompt_len] != prompt:
                    request.leader = None
                requests.append(request)
                scheduler.add(request)
            elif action < 0.45 and requests:
                scheduler.end(rng.choice(requests))
            else:
                machine.step()
        machine.finish()
        assert scheduler.pool.used == 0
        for request in requests:
            alone = reference(request.tokens[: request.prompt_len], request.seed, request.sampling.max_tokens, EOS)
            if request.finish is None:
                assert request.ended
                assert request.out == alone[: request.out_len]
            else:
                assert request.out == alone
                if request.prompt_logprobs is not None:
                    assert scored(request) == [-float(position) for position in range(1, request.prompt_len)]
        preemptions += scheduler.counters.preemptions
        hits += scheduler.counters.prefix_hits
    assert preemptions > 200
    assert (hits > 1000) is caching
