"""What a frontend counts by itself, beside the engine's figures: plain numbers, moved on by whoever sees the event.

All but the gauge are cumulative over all lives of a worker's place, and are added up over the places of an address.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct, field

from protocol.metrics import Histogram

_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STALL: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

STREAMS: Final = ("tokenwire_streams", "Answers that are being streamed.")
COUNTERS: Final = {
    "tokenwire_client_disconnects_total": "Requests whose client left before the answer was complete.",
    "tokenwire_coalesced_tokens_total": "Tokens that waited for their reader and went out together with earlier ones.",
    "tokenwire_resumed_streams_total": "Streams continued by another connection.",
    "tokenwire_replayed_requests_total": "Requests submitted again after the engine core was lost.",
}
HISTOGRAMS: Final = {
    "tokenwire_send_stall_seconds": ("How long a connection took no more bytes, each time that it did not.", _STALL),
    "tokenwire_event_loop_lag_seconds": ("How late the event loop is, seen four times a second.", _LAG),
}
REQUESTS: Final = ("tokenwire_http_requests_total", "Answers by the route's path template and their status.")


class Tallies(Struct, array_like=True):
    """Made without arguments they are those of a frontend that has seen nothing."""

    streams: int = 0
    client_disconnects: int = 0
    coalesced_tokens: int = 0
    resumed_streams: int = 0
    replayed_requests: int = 0
    send_stalls: Histogram = field(default_factory=lambda: Histogram.of(_STALL))
    loop_lags: Histogram = field(default_factory=lambda: Histogram.of(_LAG))
    requests: dict[str, dict[int, int]] = field(default_factory=dict)  # by route and status

    @property
    def counters(self) -> tuple[int, ...]:
        """Those that COUNTERS names."""
        return self.client_disconnects, self.coalesced_tokens, self.resumed_streams, self.replayed_requests

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """Those that HISTOGRAMS names."""
        return self.send_stalls, self.loop_lags

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """An answer that is no response of its own is being streamed."""
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def answered(self, route: str, status: int) -> None:
        """A response has begun."""
        statuses = self.requests.setdefault(route, {})
        statuses[status] = statuses.get(status, 0) + 1

    def stalled(self, seconds: float) -> None:
        """A connection took no bytes for so long."""
        self.send_stalls.observe(_STALL, seconds)

    def late(self, seconds: float) -> None:
        """The event loop was."""
        self.loop_lags.observe(_LAG, seconds)

    def add(self, other: "Tallies") -> None:
        """All that the other one counted; what it has running is its own affair."""
        self.client_disconnects += other.client_disconnects
        self.coalesced_tokens += other.coalesced_tokens
        self.resumed_streams += other.resumed_streams
        self.replayed_requests += other.replayed_requests
        self.send_stalls.add(other.send_stalls)
        self.loop_lags.add(other.loop_lags)
        for route, statuses in other.requests.items():
            mine = self.requests.setdefault(route, {})
            for status, count in statuses.items():
                mine[status] = mine.get(status, 0) + count
