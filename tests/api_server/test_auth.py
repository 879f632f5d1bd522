"""Who gets past the door, on the layer itself; that the door is hung is tested with the server."""

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from api_server.auth import Auth, key_digest
from api_server.routes import API, HEALTH

CLOSED = ("/v1/models", "/v1/chat/completions", "/generate", "/nothing", "//livez", "/livez/", "/LIVEZ", "/metrics/x")
OPEN = ("/livez", "/readyz", "/health", "/ping", "/startupz", "/version", "/metrics", "/", "/docs", "/openapi.json")


async def ask(auth: Auth, path: str, query: bytes = b"", kind: str = "http", **headers: str) -> Scope | int:
    """The scope that came through, or the status of the refusal (1008 on a WebSocket)."""
    scope: Scope = {
        "type": kind,
        "path": path,
        "query_string": query,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    if kind == "http":
        scope["method"] = "GET"
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await auth(scope, receive, send)
    if "passed" in scope:
        return scope
    return int(sent[0].get("status", sent[0].get("code", 0)))


def guarded(*keys: str, metrics_key: str | None = None) -> Auth:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["passed"] = True

    return Auth(app, keys, metrics_key)


def digest(scope: Scope | int) -> Any:
    assert not isinstance(scope, int)
    return scope["state"]["key_digest"]


@pytest.mark.anyio
async def test_without_keys_everything_is_open_and_the_digest_is_empty() -> None:
    for path in (*CLOSED, *OPEN):
        assert digest(await ask(guarded(), path)) == b""


@pytest.mark.anyio
async def test_with_keys_only_the_listed_paths_are_open() -> None:
    auth = guarded("one", "two")
    for path in CLOSED:
        assert await ask(auth, path) == 401
    for path in OPEN:
        assert digest(await ask(auth, path)) == b""
    assert [route.path for route in API if digest_or_status(await ask(auth, route.path)) != 401] == []
    assert all(route.path in OPEN for route in HEALTH)


def digest_or_status(result: Scope | int) -> Any:
    return result if isinstance(result, int) else digest(result)


@pytest.mark.anyio
async def test_any_of_the_keys_opens_by_either_header() -> None:
    auth = guarded("one", "two")
    assert digest(await ask(auth, "/generate", authorization="Bearer two")) == key_digest(b"two")
    assert digest(await ask(auth, "/generate", authorization="bearer  one ")) == key_digest(b"one")
    assert digest(await ask(auth, "/generate", x_api_key="one")) == key_digest(b"one")
    assert digest(await ask(auth, "/generate", authorization="Bearer no", x_api_key="two")) == key_digest(b"two")
    assert len(key_digest(b"two")) == 16


@pytest.mark.anyio
@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer ", "Basic one", "one", "Bearer onetwo", "Bearer ONE"])
async def test_what_is_not_a_key_does_not_open(shown: str) -> None:
    assert await ask(guarded("one", "two"), "/generate", authorization=shown) == 401


@pytest.mark.anyio
async def test_the_query_opens_only_where_headers_are_impossible() -> None:
    auth = guarded("o ne")
    assert digest(await ask(auth, "/v1/completions/stream", b"prompt=a&access_token=o%20ne")) == key_digest(b"o ne")
    assert await ask(auth, "/v1/completions/stream", b"access_token=x") == 401
    assert await ask(auth, "/v1/models", b"access_token=o%20ne") == 401
    assert digest(await ask(auth, "/v1/ws", b"access_token=o%20ne", "websocket")) == key_digest(b"o ne")
    assert await ask(auth, "/v1/ws", b"", "websocket") == 1008


@pytest.mark.anyio
async def test_the_metrics_key_closes_metrics_and_nothing_else() -> None:
    auth = guarded("one", metrics_key="m")
    assert await ask(auth, "/metrics") == 401
    assert await ask(auth, "/metrics", authorization="Bearer one") == 401
    assert not isinstance(await ask(auth, "/metrics", authorization="Bearer m"), int)
    assert await ask(auth, "/generate", authorization="Bearer m") == 401
    assert not isinstance(await ask(auth, "/livez"), int)
