"""Which heads open a WebSocket, and what becomes of those that nearly do."""

import json
import logging
from collections.abc import Iterator

import pytest

from api_server.handshake import is_handshake
from api_server.routes import API
from tests.api_server.live import Answer, LiveServer, until
from tests.api_server.sockets import frame, handshake, unmasked

GOOD = handshake()
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        GOOD,
        handshake("?access_token=k"),
        GOOD.replace(b"Connection: Upgrade", b"connection: keep-alive,  upgrade"),
        GOOD.replace(b"Upgrade: websocket", b"UPGRADE:WebSocket"),
        handshake(headers="Connection: keep-alive\r\nOrigin: http://x\r\nSec-WebSocket-Protocol: a, b\r\n"),
    ],
)
def test_a_handshake_is_one(head: bytes) -> None:
    assert is_handshake(head)


NEARLY = {
    "another route": GOOD.replace(b"/v1/ws", b"/v1/wss"),
    "below the route": GOOD.replace(b"/v1/ws", b"/v1/ws/"),
    "another method": GOOD.replace(b"GET", b"POST"),
    "an older HTTP": GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another protocol": GOOD.replace(b"websocket", b"h2c"),
    "two protocols": handshake(headers="Upgrade: h2c\r\n"),
    "no upgrade": GOOD.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
    "another version": GOOD.replace(b"Version: 13", b"Version: 8"),
    "no version": GOOD.replace(b"Sec-WebSocket-Version: 13\r\n", b""),
    "no key": GOOD.replace(b"Sec-WebSocket-Key", b"X-Key"),
    "a short key": GOOD.replace(b"AAAAAAAA", b"AAAA"),
    "no base64": GOOD.replace(b"AAAA", b"A*AA"),
    "two keys": handshake(headers="Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"),
    "two origins": handshake(headers="Origin: http://x\r\nOrigin: http://y\r\n"),
    "a body": handshake(headers="Content-Length: 5\r\n"),
    "chunks": handshake(headers="Transfer-Encoding: chunked\r\n"),
}


@pytest.mark.parametrize("head", NEARLY.values(), ids=NEARLY)
def test_what_is_nearly_one_is_not(head: bytes) -> None:
    assert not is_handshake(head)


# ---------------------------------------------------------------------------------------------------- on a connection


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(API, header_timeout_s=5.0) as live:
        yield live


def code(answer: Answer) -> str:
    found: str = json.loads(answer.body)["error"]["code"]
    return found


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_it_may_come_in_pieces_and_with_frames_behind_it(server: LiveServer, step: int) -> None:
    data = LIVEZ + GOOD + frame(b"{") + frame(b"}")
    with server.connect() as client:
        for start in range(0, len(data), step):
            client.send(data[start : start + step])
        assert client.answer().status == 200
        head = client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"x-request-id: " in head
        assert [json.loads(unmasked(client)[1])["error"]["code"] for _ in range(2)] == ["invalid_json"] * 2


@pytest.mark.parametrize("name", ["another protocol", "no upgrade", "another version", "a short key"])
def test_what_is_nearly_one_is_told_so_and_the_connection_goes_on(server: LiveServer, name: str) -> None:
    with server.connect() as client:
        client.send(NEARLY[name] + LIVEZ)
        answer = client.answer()
        assert (answer.status, code(answer)) == (426, "upgrade_required")
        assert (answer.headers["upgrade"], answer.headers["sec-websocket-version"]) == ("websocket", "13")
        assert client.answer().status == 200


@pytest.mark.parametrize("name", ["a body", "chunks"])
def test_a_body_is_no_frames_and_no_request(server: LiveServer, name: str) -> None:
    """Were it taken for either, there would be an answer to it."""
    body = {"a body": b"GET /", "chunks": b"5\r\nGET /\r\n0\r\n\r\n"}[name]
    with server.connect() as client:
        client.send(NEARLY[name] + body + LIVEZ)
        assert client.answer().status == 426
        assert client.answer().body == b'{"status":"ok"}'


def test_headers_have_their_limits(server: LiveServer) -> None:
    for headers in ("X: %s\r\n" % ("x" * 8200), "X: y\r\n" * 80, "X: %s\r\n" % ("x" * 40_000)):
        answer = server.ask(handshake(headers=headers))
        assert (answer.status, code(answer)) == (431, "headers_too_large")
    with LiveServer(API, header_timeout_s=0.1) as hasty, hasty.connect() as client:
        client.send(GOOD[:-2])
        assert client.answer().status == 408


def test_what_the_library_refuses_has_an_end(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has limits of its own, which ours come before; were they lower, nobody must wait."""
    monkeypatch.setattr("websockets.http11.MAX_NUM_HEADERS", 5)
    with server.connect() as client:
        client.send(handshake(headers="X: y\r\n" * 5))
        assert client.rest()[:13] in (b"", b"HTTP/1.1 431 ")  # versions of it differ in what they say


def test_a_server_of_health_alone_has_no_socket() -> None:
    with LiveServer(health_only=True) as server:
        assert server.ask(GOOD).status == 404


# ---------------------------------------------------------------------------------------------------- who may


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", "", 401),
        ("?access_token=wrong", "", 401),
        ("?access_token=s3cret", "", 101),
        ("", "Authorization: Bearer s3cret\r\n", 101),
        ("", "X-Api-Key: s3cret\r\n", 101),
        ("", "Cookie: access_token=s3cret\r\n", 401),
    ],
)
def test_a_key_opens_it_by_header_or_query_and_is_never_logged(
    query: str, headers: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        caplog.at_level(logging.DEBUG, "uvicorn.error"),
        LiveServer(API, api_keys=("s3cret",)) as server,
        server.connect() as client,
    ):
        client.send(handshake(query, headers))
        if status == 101:
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        else:
            answer = client.answer()
            assert (answer.status, code(answer)) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            assert client.rest() == b""
        client.close()
        until(lambda: f"WS /v1/ws {status}" in caplog.text)
    assert "s3cret" not in caplog.text
    assert "access_token" not in caplog.text


@pytest.mark.parametrize(
    ("allowed", "origin", "opens"),
    [
        ((), "", True),
        ((), "http://x", True),
        ((), "https://X", True),
        ((), "http://x:81", False),
        ((), "https://evil.example", False),
        ((), "null", False),
        (("https://a.example",), "https://a.example", True),
        (("https://a.example",), "https://a.example.evil", False),
        (("https://a.example",), "http://x", True),
        (("*",), "https://evil.example", True),
        (("*",), "null", True),
    ],
)
def test_a_page_opens_it_from_its_own_origin_or_a_listed_one(
    allowed: tuple[str, ...], origin: str, opens: bool
) -> None:
    headers = f"Origin: {origin}\r\n" if origin else ""
    with LiveServer(API, cors_origins=allowed) as server, server.connect() as client:
        client.send(handshake(headers=headers))
        if opens:
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        else:
            answer = client.answer()
            assert (answer.status, code(answer)) == (403, "origin_not_allowed")


def test_without_a_host_no_origin_is_its_own(server: LiveServer) -> None:
    for origin in ("null", "http://", ""):
        head = handshake(headers=f"Origin: {origin}\r\n").replace(b"Host: x\r\n", b"")
        with server.connect() as client:
            client.send(head)
            status = client.until(b"\r\n").split()[1]
        assert status == (b"403" if origin else b"101")


def test_a_drain_refuses_it(tmp_path: object) -> None:
    with LiveServer(API, drain_grace_s=5.0) as server:
        server.stop()
        until(lambda: server.frontend.draining)
        answer = server.ask(GOOD)
        assert (answer.status, code(answer), answer.headers["retry-after"]) == (503, "draining", "5")
