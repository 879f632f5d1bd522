"""Which pages of other origins may read this server's answers. Knows requests' and responses' headers alone."""

from collections.abc import Iterable
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from api_server.errors import ApiError
from api_server.respond import ErrorResponse

EVERYONE: Final = b"*"
EXPOSED: Final = b"X-Request-Id, X-Stream-Id, Retry-After"
MAX_AGE_S: Final = 600  # for which a browser may remember a preflight

Headers = list[tuple[bytes, bytes]]


class Cors:
    """The policy for `origins`: without any it is off, with `*` it lets every page in. Cookies mean nothing here, so
    credentials are never allowed."""

    def __init__(self, origins: Iterable[str]) -> None:
        # Browsers write them in small letters, and without a path.
        self._origins: Final = frozenset(origin.lower().removesuffix("/").encode() for origin in origins)

    def headers(self, scope: Scope) -> Headers:
        """For every response to this request: a page must be able to read its errors, too."""
        if not self._origins:
            return []
        if EVERYONE in self._origins:
            return _allowed(EVERYONE)
        origin = _header(scope, b"origin")
        vary = [(b"vary", b"Origin")]
        return vary + _allowed(origin) if origin in self._origins else vary

    def refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a WebSocket that a page may not open; None if it may, or if it is no page that asks. Browsers
        ask nobody ahead of one, and let every page read it."""
        origin = _header(scope, b"origin")
        if not origin or self._origins & {origin, EVERYONE}:
            return None
        place = origin.partition(b"://")[2].lower()  # a proxy before us may have another scheme
        if place and place == _header(scope, b"host").lower():
            return None
        return ErrorResponse(ApiError("origin_not_allowed", "Pages of this origin may not use this server."))

    def preflight(self, scope: Scope) -> ASGIApp | None:
        """The answer to a browser's question ahead of a request; None if this is no such question."""
        origin = _header(scope, b"origin")
        asks = scope["method"] == "OPTIONS" and origin and _header(scope, b"access-control-request-method")
        if not self._origins or not asks:
            return None
        if not self._origins & {origin, EVERYONE}:
            return ErrorResponse(ApiError("invalid_request_error", "Pages of this origin may not use this server."))
        # Mirrored, because `*` would leave out Authorization.
        wanted = _header(scope, b"access-control-request-headers").decode("latin-1")
        headers = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": str(MAX_AGE_S)}
        return Response(headers=headers | ({"Access-Control-Allow-Headers": wanted} if wanted else {}))


def _allowed(origin: bytes) -> Headers:
    return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED)]


def _header(scope: Scope, wanted: bytes) -> bytes:
    """Empty where there is none."""
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")
