"""The page behind GET /metrics: the engine's figures as it last sent them, and what this process sees of the engine.

Every series is there from the start. An engine that is gone runs nothing, whatever it said last; its counters stay.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from api_server.engine_client import EngineClient
from protocol import metrics as names
from protocol.metrics import EngineMetrics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
FRESH_S: Final = 0.25  # scrapers may come every 50 ms; the page is made anew for one in five of them
LABELS: Final = ("model_name", "engine")


class MetricsPage:
    """Renders at most once per FRESH_S."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine: Final = engine
        self._registry: Final = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._page = b""
        self._made_s = float("-inf")

    def text(self) -> bytes:
        """Prometheus text exposition."""
        now_s = time.monotonic()
        if now_s - self._made_s > FRESH_S:
            self._page, self._made_s = generate_latest(self._registry), now_s
        return self._page

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks of a collector."""
        engine = self._engine
        metrics = engine.metrics
        labels = (metrics.model_name or (engine.card.name if engine.card else ""), "0")
        yield from _engine_families(metrics, labels, alive=engine.connected)
        for name, text, value in (
            ("tokenwire_engine_up", "Whether the engine core is connected, loaded and fresh.", float(engine.ready)),
            ("tokenwire_engine_epoch", "Counts the lives of the engine core.", float(engine.epoch)),
            ("tokenwire_heartbeat_age_seconds", "Since anything came from the engine core.", engine.heartbeat_age_s),
        ):
            yield _one(GaugeMetricFamily(name, text, labels=("engine",)), ("0",), value)


def _engine_families(metrics: EngineMetrics, labels: tuple[str, ...], *, alive: bool) -> Iterator[Metric]:
    for name, text in names.GAUGES.items():
        yield _one(
            GaugeMetricFamily(name, text, labels=LABELS), labels, metrics.gauges.get(name, 0.0) if alive else 0.0
        )
    for name, text in names.COUNTERS.items():
        yield _one(CounterMetricFamily(name, text, labels=LABELS), labels, metrics.counters.get(name, 0))
    finished = CounterMetricFamily(names.FINISHED, names.FINISHED_HELP, labels=(*LABELS, "finished_reason"))
    for reason, count in metrics.finished.items():
        finished.add_metric((*labels, reason), count)
    yield finished
    layout = (str(metrics.block_size), str(metrics.num_blocks))
    config = GaugeMetricFamily(
        names.CACHE_CONFIG, names.CACHE_CONFIG_HELP, labels=(*LABELS, "block_size", "num_gpu_blocks")
    )
    yield _one(config, (*labels, *layout), 1.0)
    for name, (text, bounds) in names.HISTOGRAMS.items():
        found = metrics.histograms[name]
        family = HistogramMetricFamily(name, text, labels=LABELS)
        family.add_metric(labels, list(_cumulative(bounds, found.counts)), found.sum)
        yield family


def _one(family: GaugeMetricFamily | CounterMetricFamily, labels: tuple[str, ...], value: float) -> Metric:
    family.add_metric(labels, value)
    return family


def _cumulative(bounds: tuple[float, ...], counts: Iterable[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        yield ("+Inf" if bound == float("inf") else repr(bound)), total
