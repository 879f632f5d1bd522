"""The engine's figures on the wire: plain numbers, under the names and with the buckets that vLLM uses, so that its
dashboards, scalers and recording rules work unchanged. Who shows them, and how, is the frontend's affair."""

from bisect import bisect_left
from typing import Final, Self

from msgspec import Struct, field

_SECONDS: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
                   480.0, 960.0, 1920.0)  # fmt: skip
_TOKENS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5)
_TTFT: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0, 160.0)  # fmt: skip
_ITL: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
               10.0, 20.0, 40.0, 80.0)  # fmt: skip
_FREEING: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEP_TOKENS: Final = tuple(float(2**power) for power in range(15))

GAUGES: Final = {
    "vllm:num_requests_running": "Sequences in the running batch.",
    "vllm:num_requests_waiting": "Sequences waiting to be run.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache in use, 1 is all of it.",
}
COUNTERS: Final = {
    "vllm:prompt_tokens_total": "Prompt tokens prefilled.",
    "vllm:generation_tokens_total": "Tokens generated.",
    "vllm:num_preemptions_total": "Sequences that gave their blocks back and were computed again.",
    "vllm:prefix_cache_queries_total": "Tokens looked up in the prefix cache.",
    "vllm:prefix_cache_hits_total": "Tokens found in the prefix cache.",
    "tokenwire_engine_restarts_total": "Starts of the engine core after its first.",
    "tokenwire_aborts_total": "Sequences ended early because nobody wanted the rest.",
}
FINISHED: Final = "vllm:request_success_total"
FINISHED_HELP: Final = "Sequences that ended, by how."
FINISHED_REASONS: Final = ("stop", "length", "abort", "error")
CACHE_CONFIG: Final = "vllm:cache_config_info"
CACHE_CONFIG_HELP: Final = "How the KV cache is laid out."
HISTOGRAMS: Final = {
    "vllm:time_to_first_token_seconds": ("From arrival at the engine to the first token.", _TTFT),
    "vllm:inter_token_latency_seconds": ("Between two tokens of a sequence.", _ITL),
    "vllm:e2e_request_latency_seconds": ("From arrival at the engine to the last token.", _SECONDS),
    "vllm:request_queue_time_seconds": ("From arrival to the first step.", _SECONDS),
    "vllm:request_prefill_time_seconds": ("From the first step to the first token.", _SECONDS),
    "vllm:request_decode_time_seconds": ("From the first token to the last.", _SECONDS),
    "vllm:request_prompt_tokens": ("Prompt tokens of a sequence.", _TOKENS),
    "vllm:request_generation_tokens": ("Tokens generated for a sequence.", _TOKENS),
    "vllm:iteration_tokens_total": ("Tokens computed in a step.", _STEP_TOKENS),
    "tokenwire_abort_to_free_seconds": ("From an abort to the return of its blocks.", _FREEING),
}


class Histogram(Struct, array_like=True):
    """`counts[i]` values were in bucket i of the family's bounds, those above all of them in the last."""

    counts: list[int]
    sum: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...]) -> Self:
        """An empty one."""
        return cls([0] * (len(bounds) + 1))

    def add(self, other: "Histogram") -> None:
        """What the other one has seen, too. Both have the same bounds."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def observe(self, bounds: tuple[float, ...], value: float, times: int = 1) -> None:
        self.counts[bisect_left(bounds, value)] += times
        self.sum += value * times


def _empty_histograms() -> dict[str, Histogram]:
    return {name: Histogram.of(bounds) for name, (_, bounds) in HISTOGRAMS.items()}


class EngineMetrics(Struct, array_like=True):
    """All of it, cumulative since the engine started; made without arguments it is an engine that has done nothing."""

    model_name: str = ""
    block_size: int = 0
    num_blocks: int = 0
    gauges: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GAUGES, 0.0))
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISHED_REASONS, 0))
    histograms: dict[str, Histogram] = field(default_factory=_empty_histograms)

    def observe(self, name: str, value: float, times: int = 1) -> None:
        self.histograms[name].observe(HISTOGRAMS[name][1], value, times)
