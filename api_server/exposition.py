"""Prometheus' text format, version 0.0.4. Knows no metric.

Written by hand because a page is made anew for every scrape, and some scrapers come twenty times a second: it takes a
tenth of what the client library takes.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from protocol.metrics import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def gauge(name: str, text: str, value: float, labels: Labels) -> str:
    """One family of one series."""
    return _family(name, text, "gauge", [f"{name}{_braces(labels)} {value!r}"])


def counter(name: str, text: str, series: Iterable[tuple[Labels, float]]) -> str:
    """One family; `name` has its `_total`."""
    return _family(name, text, "counter", (f"{name}{_braces(labels)} {value!r}" for labels, value in series))


def histogram(name: str, text: str, bounds: tuple[float, ...], found: Histogram, labels: Labels) -> str:
    """One family of one histogram."""
    return _family(name, text, "histogram", _histogram_lines(name, bounds, found, labels))


def _histogram_lines(name: str, bounds: tuple[float, ...], found: Histogram, labels: Labels) -> Iterator[str]:
    inner = _pairs(labels)
    opening = f"{name}_bucket{{{inner}{',' if inner else ''}le="
    total = 0
    for bound, count in zip((*map(repr, bounds), "+Inf"), found.counts, strict=True):
        total += count
        yield f'{opening}"{bound}"}} {total}'
    yield f"{name}_sum{_braces(labels)} {found.sum!r}"
    yield f"{name}_count{_braces(labels)} {total}"


def _family(name: str, text: str, kind: str, lines: Iterable[str]) -> str:
    return "\n".join((f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines, ""))


def _braces(labels: Labels) -> str:
    return f"{{{_pairs(labels)}}}" if labels else ""


def _pairs(labels: Labels) -> str:
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
