"""What a route tells of itself: what it takes, what it gives, how it can fail. Knows no path and no handler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

from api_server.errors import ErrorEnvelope
from api_server.form import EVENTS_TYPE, LINES_TYPE

JSON_TYPE: Final = "application/json"

# Error codes by where they arise. Those of the HTTP parser, the API keys, a drain and the body are every route's, and
# need not be repeated by it.
ON_EVERY_ROUTE: Final = frozenset(
    {"invalid_request_error", "request_timeout", "request_too_large", "headers_too_large", "internal_error"}
)
OF_A_BODY: Final = frozenset({"invalid_json", "unsupported_media_type", "request_cancelled"})
OF_THE_ENGINE: Final = frozenset({"engine_loading", "engine_restarting"})
OF_ADMISSION: Final = OF_THE_ENGINE | {"context_length_exceeded", "unsupported_parameter", "model_not_found"}
OF_GENERATION: Final = OF_ADMISSION | {"queue_full", "request_quarantined", "request_cancelled", "engine_crash"}


Tag = Literal["Generation", "Tokens", "Models", "Health"]


class Parameter(NamedTuple):
    """One that stands in the path, the query or a header. Those of the path are required, the others never."""

    name: str
    place: Literal["path", "query", "header"]
    text: str
    kind: Any = str


class Answer(NamedTuple):
    """A response beside the usual 200 and the errors; without a `kind` it has no body."""

    status: int
    text: str
    kind: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path, for the document. Its text is the handler's docstring.

    `takes` is the type of the body, `gives` that of the answer, `streams` that of each event or line of a streamed
    answer, or several types of which it is one; it ends early with a `stream_error` (None if that is among `streams`).
    The scalar fields of `query` may be given in the query. `example` is a body, or with `query` a query, that works on
    a server as it comes.
    """

    tag: Tag
    takes: Any = None
    query: type[msgspec.Struct] | None = None
    parameters: tuple[Parameter, ...] = ()
    example: Mapping[str, Any] | None = None
    gives: Any = None
    gives_as: str = JSON_TYPE  # the media type; anything but JSON is text
    streams: Any = None
    streams_as: tuple[str, ...] = (EVENTS_TYPE, LINES_TYPE)
    stream_error: Any = ErrorEnvelope
    answers: tuple[Answer, ...] = ()
    errors: frozenset[str] = field(default=frozenset())  # codes, beside those of every route
    error_body: Any = ErrorEnvelope

    @property
    def streamed(self) -> tuple[Any, ...]:
        """What an event or line of a streamed answer may be."""
        kinds = self.streams if isinstance(self.streams, tuple) else (self.streams,)
        return tuple(kind for kind in (*kinds, self.stream_error) if kind is not None)
