"""What the engine counts, and how Prometheus reads it.

Plain numbers, moved on once per step. Names are vLLM's, so that its dashboards and scalers work unchanged.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from engine_core.request import Request
from engine_core.scheduler import Scheduler
from protocol.messages import FinishReason

# vLLM's own buckets, so that its recording rules fit.
TTFT_BUCKETS: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                       40.0, 80.0, 160.0)  # fmt: skip
ITL_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
                      5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
LATENCY_BUCKETS: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
                          240.0, 480.0, 960.0, 1920.0)  # fmt: skip
TOKEN_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
STEP_TOKEN_BUCKETS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISHED_REASONS: Final = ("stop", "length", "abort", "error")


class Histogram:
    """Counts per bucket (upper bounds, +Inf last), and the sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Stats:
    """Cumulative since the engine started. Tokens count when they are made, replayed ones not again."""

    def __init__(self, model_name: str, block_size: int, num_blocks: int) -> None:
        self._model_name = model_name
        self._cache_config = f'block_size="{block_size}",num_gpu_blocks="{num_blocks}"'
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished = dict.fromkeys(FINISHED_REASONS, 0)
        self.ttft = Histogram(TTFT_BUCKETS)
        self.itl = Histogram(ITL_BUCKETS)
        self.e2e = Histogram(LATENCY_BUCKETS)
        self.queue = Histogram(LATENCY_BUCKETS)
        self.prefill = Histogram(LATENCY_BUCKETS)
        self.decode = Histogram(LATENCY_BUCKETS)
        self.prompt_length = Histogram(TOKEN_BUCKETS)
        self.generation_length = Histogram(TOKEN_BUCKETS)
        self.step_tokens = Histogram(STEP_TOKEN_BUCKETS)
        self._last_step_s: float | None = None

    def stepped(self, num_tokens: int, advanced: Iterable[Request], now_s: float) -> None:
        """A step of `num_tokens` gave one token each to `advanced`."""
        self.step_tokens.observe(num_tokens)
        decoded = 0
        for request in advanced:
            self.generation_tokens += 1
            if request.first_token_s == now_s:
                self.ttft.observe(now_s - request.arrival_s)
                self.prompt_tokens += 0 if request.replayed else request.prompt_len
            else:
                decoded += 1
        if decoded and self._last_step_s is not None:
            self.itl.observe(now_s - self._last_step_s, decoded)
        self._last_step_s = now_s

    def idle(self) -> None:
        """The next step follows no other: the time between them is no token's latency."""
        self._last_step_s = None

    def ended(self, request: Request, now_s: float) -> None:
        """A request yields no more."""
        self.finished[_reason(request)] += 1
        if request.finish is None:
            return
        first = request.first
        first_token_s = request.first_token_s if request.first_token_s is not None else now_s
        self.queue.observe(first.queue_s)
        self.prefill.observe(first.prefill_s)
        self.decode.observe(now_s - first_token_s)
        self.e2e.observe(now_s - request.arrival_s)
        self.prompt_length.observe(request.prompt_len)
        self.generation_length.observe(request.out_len)

    def render(self, scheduler: Scheduler) -> bytes:
        """Prometheus text exposition, version 0.0.4."""
        label = f'model_name="{_escape(self._model_name)}",engine="0"'
        pool, counters = scheduler.pool, scheduler.counters
        lines: list[str] = []
        for name, value in (
            ("vllm:num_requests_running", len(scheduler.running)),
            ("vllm:num_requests_waiting", len(scheduler.waiting)),
            ("vllm:kv_cache_usage_perc", pool.used / pool.num_blocks),
        ):
            lines += [f"# TYPE {name} gauge", f"{name}{{{label}}} {value}"]
        lines += ["# TYPE vllm:cache_config_info gauge", f"vllm:cache_config_info{{{label},{self._cache_config}}} 1"]
        for name, value in (
            ("vllm:prompt_tokens_total", self.prompt_tokens),
            ("vllm:generation_tokens_total", self.generation_tokens),
            ("vllm:num_preemptions_total", counters.preemptions),
            ("vllm:prefix_cache_queries_total", counters.prefix_queries),
            ("vllm:prefix_cache_hits_total", counters.prefix_hits),
        ):
            lines += [f"# TYPE {name} counter", f"{name}{{{label}}} {value}"]
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, number in self.finished.items():
            lines.append(f'vllm:request_success_total{{{label},finished_reason="{reason}"}} {number}')
        for name, histogram in (
            ("vllm:time_to_first_token_seconds", self.ttft),
            ("vllm:inter_token_latency_seconds", self.itl),
            ("vllm:e2e_request_latency_seconds", self.e2e),
            ("vllm:request_queue_time_seconds", self.queue),
            ("vllm:request_prefill_time_seconds", self.prefill),
            ("vllm:request_decode_time_seconds", self.decode),
            ("vllm:request_prompt_tokens", self.prompt_length),
            ("vllm:request_generation_tokens", self.generation_length),
            ("vllm:iteration_tokens_total", self.step_tokens),
        ):
            lines += _render_histogram(name, label, histogram)
        return ("\n".join(lines) + "\n").encode()


def _reason(request: Request) -> str:
    if request.finish is not None:
        return "stop" if request.finish is FinishReason.STOP else "length"
    return "abort" if request.failure is None else "error"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _render_histogram(name: str, label: str, histogram: Histogram) -> list[str]:
    lines = [f"# TYPE {name} histogram"]
    total = 0
    for bound, number in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        total += number
        le = "+Inf" if bound == float("inf") else repr(float(bound))
        lines.append(f'{name}_bucket{{{label},le="{le}"}} {total}')
    return [*lines, f"{name}_count{{{label}}} {total}", f"{name}_sum{{{label}}} {histogram.sum}"]
