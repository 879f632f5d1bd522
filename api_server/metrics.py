"""The page behind GET /metrics: the engine's figures once, and those of all frontends of this address together.

Every series is there from the start. An engine that is gone runs nothing, whatever it said last; its counters stay.
"""

from collections.abc import Iterator
from typing import Final

from api_server import tallies
from api_server.engine_client import EngineClient
from api_server.exposition import Labels, counter, gauge, histogram
from api_server.ledger import Ledger, Total
from api_server.tallies import Tallies
from protocol import metrics as names
from protocol.metrics import Histogram

ENGINE: Final = {"engine": "0"}
VLLM: Final = "vllm:"


class MetricsPage:
    """Made anew whenever it is asked for: a page that is kept would go back behind another frontend's."""

    def __init__(self, ledger: Ledger, engine: EngineClient, model_name: str) -> None:
        """`model_name` is what the engine will say of itself, as far as it is known before it is there."""
        self._ledger: Final = ledger
        self._engine: Final = engine
        self._model_name: Final = model_name

    def text(self) -> bytes:
        """Prometheus text exposition."""
        total = self._ledger.total()
        return "".join([*self._engine_families(total), *_frontend_families(total.tallies)]).encode()

    def _engine_families(self, total: Total) -> Iterator[str]:
        card, told = self._engine.card, total.engine
        model_name = told.model_name or (self._model_name if card is None else card.name)
        served = {"model_name": model_name, **ENGINE}
        for name, text in names.GAUGES.items():
            yield gauge(name, text, told.gauges.get(name, 0.0) if total.connected else 0.0, served)
        for name, text in names.COUNTERS.items():
            yield counter(name, text, [(_labels(name, served), told.counters.get(name, 0))])
        finished = [({**served, "finished_reason": reason}, count) for reason, count in told.finished.items()]
        yield counter(names.FINISHED, names.FINISHED_HELP, finished)
        layout = {"block_size": str(told.block_size), "num_gpu_blocks": str(told.num_blocks)}
        yield gauge(names.CACHE_CONFIG, names.CACHE_CONFIG_HELP, 1.0, served | layout)
        for name, (text, bounds) in names.HISTOGRAMS.items():
            yield histogram(name, text, bounds, _fitting(told.histograms.get(name), bounds), _labels(name, served))
        for name, text, value in (
            ("tokenwire_engine_up", "Whether the engine core is connected, loaded and fresh.", float(total.ready)),
            ("tokenwire_engine_epoch", "Counts the lives of the engine core.", float(total.epoch)),
            ("tokenwire_heartbeat_age_seconds", "Since anything came from the engine core.", total.heartbeat_age_s),
        ):
            yield gauge(name, text, value, ENGINE)


def _frontend_families(found: Tallies) -> Iterator[str]:
    yield gauge(*tallies.STREAMS, found.streams, {})
    for (name, text), value in zip(tallies.COUNTERS.items(), found.counters, strict=True):
        yield counter(name, text, [({}, value)])
    for (name, (text, bounds)), seen in zip(tallies.HISTOGRAMS.items(), found.histograms, strict=True):
        yield histogram(name, text, bounds, seen, {})
    answers = (
        ({"route": route, "code": str(status)}, count)
        for route, statuses in sorted(found.requests.items())
        for status, count in sorted(statuses.items())
    )
    yield counter(*tallies.REQUESTS, answers)


def _labels(name: str, served: Labels) -> Labels:
    """vLLM's series name the model, ours of the engine do not."""
    return served if name.startswith(VLLM) else ENGINE


def _fitting(found: Histogram | None, bounds: tuple[float, ...]) -> Histogram:
    """An engine of another version may know other bounds, or have no such histogram."""
    return found if found is not None and len(found.counts) == len(bounds) + 1 else Histogram.of(bounds)
