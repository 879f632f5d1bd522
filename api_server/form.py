"""The two forms of a streamed body, server-sent events and JSON lines, and which of them a client accepts.

Knows nothing of what is in a chunk.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from starlette.requests import HTTPConnection

from api_server.errors import ApiError
from api_server.render.frame import NDJSON, SSE, Framing

LINES_TYPE: Final = "application/x-ndjson"
EVENTS_TYPE: Final = "text/event-stream"
_QUALITY: Final = re.compile(r"[01](\.\d{0,3})?")


class Form(NamedTuple):
    """`error` is how a stream that has begun tells its failure. `keepalive` breaks a silence; if it is empty, nothing
    does."""

    media_type: str
    framing: Framing
    keepalive: bytes
    error: Callable[[ApiError], bytes]


def framed_error(framing: Framing) -> Callable[[ApiError], bytes]:
    """The error object as one more chunk."""
    return lambda error: framing.before + error.body + framing.after


# The comment has no blank line behind it: with one, OpenAI's client takes it for an event and fails.
EVENTS: Final = Form(f"{EVENTS_TYPE}; charset=utf-8", SSE, b":ka\n", framed_error(SSE))
LINES: Final = Form(LINES_TYPE, NDJSON, b"", framed_error(NDJSON))


def accepted_form(connection: HTTPConnection) -> Form:
    """Lines for a client that names them in `Accept`, and likes events less; events for everybody else: most clients
    say `*/*` or `application/json` and expect them."""
    ranges = list(_ranges(connection.headers.getlist("accept")))
    lines = max((quality for media_range, quality in ranges if media_range == LINES_TYPE), default=0.0)
    # What is asked for by name goes before what a wildcard lets in, where they are liked equally.
    named = _quality(ranges, (EVENTS_TYPE,))
    events = named if named is not None else _quality(ranges, ("text/*", "*/*"))
    if not lines or (events or 0.0) > lines or named == lines:
        return EVENTS
    return LINES


def _quality(ranges: list[tuple[str, float]], wanted: tuple[str, ...]) -> float | None:
    """Of the most specific range of `wanted` that is there."""
    for media_range in wanted:
        if found := [quality for each, quality in ranges if each == media_range]:
            return max(found)
    return None


def _ranges(headers: Iterable[str]) -> Iterable[tuple[str, float]]:
    """Media ranges and their quality, 0 … 1. One whose quality is no number is left out."""
    for element in ",".join(headers).split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        weights = [parameter[2:].strip() for parameter in parameters if parameter.startswith("q=")]
        if all(map(_QUALITY.fullmatch, weights)):
            yield media_range, min(1.0, *map(float, weights)) if weights else 1.0
