"""What the engine counts: moved on once per step and once per request, never per token and frontend."""

from collections.abc import Iterable

from engine_core.request import NO_SLOT, Request
from engine_core.scheduler import Scheduler
from protocol.messages import FinishReason
from protocol.metrics import EngineMetrics


class Stats:
    """Cumulative since the engine started. Tokens count when they are made, replayed ones not again."""

    def __init__(self, model_name: str, block_size: int, num_blocks: int, restarts: int = 0) -> None:
        """`restarts` is how many engines there were before this one."""
        self._metrics = EngineMetrics(model_name, block_size, num_blocks)
        self._metrics.counters["tokenwire_engine_restarts_total"] = restarts
        self._last_step_s: float | None = None
        self._leaving: list[tuple[Request, float]] = []  # aborted ones that still hold blocks, and since when

    def stepped(self, num_tokens: int, advanced: Iterable[Request], now_s: float) -> None:
        """A step of `num_tokens` gave one token each to `advanced`."""
        metrics = self._metrics
        metrics.observe("vllm:iteration_tokens_total", num_tokens)
        first, decoded = 0, 0
        for request in advanced:
            if request.first_token_s != now_s:
                decoded += 1
                continue
            first += 1
            if not request.replayed:  # else its client had the first token from an earlier engine
                metrics.observe("vllm:time_to_first_token_seconds", now_s - request.arrival_s)
                metrics.counters["vllm:prompt_tokens_total"] += request.prompt_len
        metrics.counters["vllm:generation_tokens_total"] += first + decoded
        if decoded and self._last_step_s is not None:
            metrics.observe("vllm:inter_token_latency_seconds", now_s - self._last_step_s, decoded)
        self._last_step_s = now_s

    def idle(self) -> None:
        """The next step follows no other: the time between them is no token's latency."""
        self._last_step_s = None

    def ended(self, request: Request, now_s: float) -> None:
        """A request yields no more."""
        metrics = self._metrics
        metrics.finished[_reason(request)] += 1
        if request.finish is None:
            if request.failure is None:
                self._aborted(request, now_s)
            return
        first = request.first
        first_token_s = request.first_token_s if request.first_token_s is not None else now_s
        metrics.observe("vllm:request_queue_time_seconds", first.queue_s)
        metrics.observe("vllm:request_prefill_time_seconds", first.prefill_s)
        metrics.observe("vllm:request_decode_time_seconds", now_s - first_token_s)
        metrics.observe("vllm:e2e_request_latency_seconds", now_s - request.arrival_s)
        metrics.observe("vllm:request_prompt_tokens", request.prompt_len)
        metrics.observe("vllm:request_generation_tokens", request.out_len)

    def scheduled(self, now_s: float) -> None:
        """The scheduler has taken back what ended requests held, but from those in flight."""
        if self._leaving:
            for request, since_s in self._leaving:
                if request.slot == NO_SLOT:
                    self._metrics.observe("tokenwire_abort_to_free_seconds", now_s - since_s)
            self._leaving = [each for each in self._leaving if each[0].slot != NO_SLOT]

    def _aborted(self, request: Request, now_s: float) -> None:
        self._metrics.counters["tokenwire_aborts_total"] += 1
        if request.slot == NO_SLOT:
            self._metrics.observe("tokenwire_abort_to_free_seconds", 0.0)
        else:
            self._leaving.append((request, now_s))

    def snapshot(self, scheduler: Scheduler) -> EngineMetrics:
        """Everything up to now. It goes on changing: for sending at once."""
        metrics, counters, pool = self._metrics, scheduler.counters, scheduler.pool
        metrics.gauges["vllm:num_requests_running"] = len(scheduler.running)
        metrics.gauges["vllm:num_requests_waiting"] = len(scheduler.waiting)
        metrics.gauges["vllm:kv_cache_usage_perc"] = pool.used / pool.num_blocks
        metrics.counters["vllm:num_preemptions_total"] = counters.preemptions
        metrics.counters["vllm:prefix_cache_queries_total"] = counters.prefix_queries
        metrics.counters["vllm:prefix_cache_hits_total"] = counters.prefix_hits
        return metrics


def _reason(request: Request) -> str:
    if request.finish is not None:
        return "stop" if request.finish is FinishReason.STOP else "length"
    return "abort" if request.failure is None else "error"
