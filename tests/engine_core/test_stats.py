from engine_core.cache.blocks import BlockPool
from engine_core.request import Request
from engine_core.scheduler import Sampled, Scheduler
from engine_core.stats import Stats
from protocol.messages import FinishReason
from protocol.metrics import HISTOGRAMS, EngineMetrics
from protocol.sampling import SamplingParams

TTFT = "vllm:time_to_first_token_seconds"
FREEING = "tokenwire_abort_to_free_seconds"
ITL = "vllm:inter_token_latency_seconds"


def idle_scheduler() -> Scheduler:
    return Scheduler(
        pool=BlockPool(11), index=None, block_size=16, max_num_seqs=4, max_num_batched_tokens=64, eos_token_ids=[]
    )


def request(**options: object) -> Request:
    return Request(0, "r", [1, 2, 3], SamplingParams(max_tokens=9), **options)  # type: ignore[arg-type]


def observed(metrics: EngineMetrics, name: str) -> int:
    return sum(metrics.histograms[name].counts)


def test_a_life_is_counted_once() -> None:
    stats, asked = Stats("m", 16, 10), request(arrival_s=1.0)
    asked.first_scheduled_s, asked.first_token_s = 1.5, 2.0
    asked.tokens.append(7)
    stats.stepped(3, [asked], 2.0)
    asked.tokens.append(8)
    stats.stepped(1, [asked], 2.25)
    asked.ended, asked.finish = True, FinishReason.STOP
    stats.ended(asked, 2.25)
    metrics = stats.snapshot(idle_scheduler())
    assert metrics.counters["vllm:prompt_tokens_total"] == 3
    assert metrics.counters["vllm:generation_tokens_total"] == 2
    assert metrics.finished == {"stop": 1, "length": 0, "abort": 0, "error": 0}
    assert metrics.histograms[TTFT].sum == 1.0
    assert metrics.histograms[ITL].sum == 0.25
    assert metrics.histograms["vllm:request_queue_time_seconds"].sum == 0.5
    assert metrics.histograms["vllm:request_prefill_time_seconds"].sum == 0.5
    assert metrics.histograms["vllm:request_decode_time_seconds"].sum == 0.25
    assert metrics.histograms["vllm:e2e_request_latency_seconds"].sum == 1.25
    assert metrics.histograms["vllm:iteration_tokens_total"].sum == 4
    assert observed(metrics, "vllm:request_prompt_tokens") == observed(metrics, "vllm:request_generation_tokens") == 1


def test_the_time_without_work_is_no_token_latency() -> None:
    stats, asked = Stats("m", 16, 10), request()
    asked.first_token_s = 0.0
    stats.stepped(1, [asked], 1.0)
    stats.idle()
    stats.stepped(1, [asked], 100.0)
    assert observed(stats.snapshot(idle_scheduler()), ITL) == 0


def test_replayed_prompts_are_not_counted_again() -> None:
    stats, again = Stats("m", 16, 10), request(out=[4, 5])
    again.first_token_s = 2.0
    stats.stepped(5, [again], 2.0)
    metrics = stats.snapshot(idle_scheduler())
    assert metrics.counters["vllm:prompt_tokens_total"] == 0
    assert metrics.counters["vllm:generation_tokens_total"] == 1
    assert observed(metrics, TTFT) == 0


def test_aborts_and_failures_are_told_apart() -> None:
    stats, aborted, failed = Stats("m", 16, 10), request(), request()
    failed.failure = ("internal_error", "why")
    stats.ended(aborted, 1.0)
    stats.ended(failed, 1.0)
    assert stats.snapshot(idle_scheduler()).finished == {"stop": 0, "length": 0, "abort": 1, "error": 1}


def test_an_abort_is_timed_until_its_blocks_are_back() -> None:
    stats, scheduler = Stats("m", 16, 10), idle_scheduler()
    queued, running, failed = request(), request(), request()
    for each in (queued, running, failed):
        scheduler.add(each)
    scheduler.end(queued)
    stats.ended(queued, 1.0)
    batch = scheduler.schedule(2.0)
    assert batch is not None
    failed.failure = ("internal_error", "why")
    for each in (running, failed):
        scheduler.end(each)
        stats.ended(each, 2.5)
    assert scheduler.schedule(3.0) is None  # the step in flight still uses them
    stats.scheduled(3.0)
    assert observed(stats.snapshot(scheduler), FREEING) == 1
    scheduler.commit(batch, [Sampled(1), Sampled(1)], 4.0)
    assert scheduler.schedule(4.5) is None
    stats.scheduled(4.5)
    stats.scheduled(9.0)
    metrics = stats.snapshot(scheduler)
    assert (observed(metrics, FREEING), metrics.histograms[FREEING].sum) == (2, 2.0)
    assert metrics.counters["tokenwire_aborts_total"] == 2


def test_restarts_are_known_from_the_start() -> None:
    counters = Stats("m", 16, 10, 3).snapshot(idle_scheduler()).counters
    assert counters["tokenwire_engine_restarts_total"] == 3


def test_buckets_hold_their_upper_bounds() -> None:
    metrics = EngineMetrics()
    _, bounds = HISTOGRAMS[TTFT]
    for value in (bounds[0], bounds[0] * 1.01, bounds[-1] * 2):
        metrics.observe(TTFT, value)
    counts = metrics.histograms[TTFT].counts
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (1, 1, 1, 3)
