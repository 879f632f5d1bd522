"""Limits on the body, over a real connection."""

import json
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response

from api_server.body import read_body
from tests.api_server.live import LiveServer, endpoint

LIMIT = 256 << 10


async def measure(request: Request) -> Response:
    return Response(str(len(await read_body(request))))


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer([endpoint("/measure", measure)], max_body_size=LIMIT, body_timeout_s=0.3) as live:
        yield live


def code(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_a_body_within_the_limit_is_read_whole(server: LiveServer, size: int) -> None:
    assert server.post("/measure", b"x" * size).body == str(size).encode()


def test_a_chunked_body_is_read_whole(server: LiveServer) -> None:
    answer = server.ask(b"POST /measure HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert answer.body == b"5"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json", ""])
def test_json_is_welcome(server: LiveServer, kind: str) -> None:
    assert server.post("/measure", b"{}", f"Content-Type: {kind}\r\n").status == 200


@pytest.mark.parametrize(
    "header",
    ["Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=a", "Content-Encoding: gzip"],
)
def test_anything_else_is_415(server: LiveServer, header: str) -> None:
    answer = server.post("/measure", b"{}", header + "\r\n")
    assert (answer.status, code(answer.body)) == (415, "unsupported_media_type")


def test_too_large_is_413_before_the_body_is_asked_for(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(f"POST /measure HTTP/1.1\r\nContent-Length: {LIMIT + 1}\r\nExpect: 100-continue\r\n\r\n".encode())
        answer = client.answer()
    assert (answer.status, code(answer.body)) == (413, "request_too_large")


def test_a_413_is_told_while_the_body_still_comes_and_ends_the_connection(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(f"POST /measure HTTP/1.1\r\nContent-Length: {LIMIT + 5}\r\n\r\n".encode() + b"x" * (LIMIT + 5))
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert client.rest() == b""


def test_a_chunked_body_that_never_ends_is_413(server: LiveServer) -> None:
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with server.connect() as client:
        client.send(b"POST /measure HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * (LIMIT // 0x8000 + 1))
        answer = client.answer()
    assert (answer.status, code(answer.body)) == (413, "request_too_large")


def test_chunk_framing_counts(server: LiveServer) -> None:
    """60,000 chunks of one byte are a small body and a lot of wire."""
    with server.connect() as client:
        client.send(b"POST /measure HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert not client.ended
        client.send(b"1\r\nx\r\n" * 120_000)
        answer = client.answer()
    assert (answer.status, code(answer.body)) == (413, "request_too_large")


def test_a_body_that_does_not_come_is_408(server: LiveServer) -> None:
    answer = server.ask(b"POST /measure HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
    assert (answer.status, code(answer.body)) == (408, "request_timeout")


def test_a_connection_whose_body_never_ends_is_closed(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(b"POST /measure HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
        assert client.answer().status == 408
        assert client.rest() == b""
