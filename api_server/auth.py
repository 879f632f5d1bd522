"""API keys: every route is closed to those without one, except the few that are listed here."""

import hmac
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from api_server.assets import FILES
from api_server.errors import ApiError
from api_server.handshake import SOCKET_PATH
from api_server.respond import ErrorResponse

HEALTH_PATHS: Final = frozenset({"/livez", "/readyz", "/health", "/ping", "/startupz", "/version", "/metrics"})
PUBLIC_PATHS: Final = HEALTH_PATHS - {"/metrics"} | {"/", "/openapi.json"} | FILES.keys()
METRICS_PATH: Final = "/metrics"
# A browser's EventSource and WebSocket can't set headers, so these two take the key from the query.
QUERY_TOKEN_ROUTES: Final = frozenset({("http", "GET", "/v1/completions/stream"), ("websocket", "", SOCKET_PATH)})


def key_digest(key: bytes) -> bytes:
    """What the rest of the system knows of a key: 16 bytes."""
    return blake2b(key, digest_size=16).digest()


class Auth:
    """Default-deny on the path as it is routed. Sets `state.key_digest`, empty where no keys are configured."""

    def __init__(self, app: ASGIApp, api_keys: Iterable[str], metrics_key: str | None) -> None:
        self.app = app
        self._keys = tuple(key_digest(key.encode()) for key in api_keys)
        self._metrics_keys = () if metrics_key is None else (key_digest(metrics_key.encode()),)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        keys = self._required(scope["path"])
        digest = _matching(keys, _presented(scope)) if keys else b""
        if digest is None:
            message = "Incorrect API key provided, or none: send it as Authorization: Bearer KEY."
            error = ApiError("invalid_api_key", message)
            await ErrorResponse(error, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        scope.setdefault("state", {})["key_digest"] = digest
        await self.app(scope, receive, send)

    def _required(self, path: str) -> tuple[bytes, ...]:
        """Digests of the keys of which one must be shown; empty for an open path."""
        if path == METRICS_PATH:
            return self._metrics_keys
        return () if path in PUBLIC_PATHS else self._keys


def _matching(keys: tuple[bytes, ...], presented: Iterable[bytes]) -> bytes | None:
    """The digest that was shown, if it is one of ours. Compares with every key, so that timing tells nothing."""
    found = None
    for digest in presented:
        for key in keys:
            if hmac.compare_digest(key, digest):
                found = key
    return found


def _presented(scope: Scope) -> Iterator[bytes]:
    """Digests of all keys that the request shows."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            yield key_digest(value[7:].strip())
        elif name == b"x-api-key":
            yield key_digest(value.strip())
    if (scope["type"], scope.get("method", ""), scope["path"]) in QUERY_TOKEN_ROUTES:
        for token in parse_qs(scope["query_string"].decode("latin-1")).get("access_token", []):
            yield key_digest(token.encode())
