"""Which form of a stream a client gets, and what a stream of lines looks like on the wire."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import Request

from api_server.errors import ApiError
from api_server.form import EVENTS, LINES, accepted_form
from api_server.sse import EventStream
from tests.api_server.live import LiveServer, endpoint

ND = "application/x-ndjson"
SSE = "text/event-stream"


@pytest.mark.parametrize(
    "accept",
    [
        (ND,),
        (ND.upper(),),
        (f"{ND}, */*",),
        (f"{ND}; q=0.5, */*;q=0.5",),
        (f"text/html,{ND};charset=utf-8;q=0.9,*/*;q=0.8",),
        (f"{ND};q=0.5, {SSE};q=0.4",),
        (f"{ND};q=0.5, {SSE};q=0.4, */*",),
        (f"{ND};q=0.001",),
        (f"{ND};q=0.1, {SSE};q=0",),
        (f"{ND};q=0.6, text/*;q=0.5, */*;q=0.9",),
        ("text/html", f" {ND} "),
        (f"{ND}, {SSE};q=x",),
        (f",,;,{ND},",),
    ],
)
def test_lines_for_who_names_them_and_likes_events_less(accept: tuple[str, ...]) -> None:
    assert accepted_form(asking(*accept)) is LINES


@pytest.mark.parametrize(
    "accept",
    [
        (),
        ("",),
        ("*/*",),
        ("application/json",),
        ("application/*",),
        (SSE,),
        (f"{SSE}, {ND}",),
        (f"{ND}, {SSE}",),
        (f"{ND};q=0.5, {SSE};q=0.5",),
        (f"{ND};q=0.5, */*",),
        (f"{ND};q=0.5, text/*;q=0.6",),
        (f"{ND};q=0",),
        (f"{ND};q=0.0, application/json",),
        (f"{ND};q=x",),
        (f"{ND};q=-1",),
        (f"{ND};q=nan",),
        (f"{ND};q=0.1234",),
        (f"{ND}x",),
        ("application/x-ndjson+json",),
    ],
)
def test_events_for_everybody_else(accept: tuple[str, ...]) -> None:
    assert accepted_form(asking(*accept)) is EVENTS


def asking(*accept: str) -> Request:
    headers = [(b"accept", value.encode()) for value in accept]
    return Request({"type": "http", "headers": headers})


# ---------------------------------------------------------------------------------------------------- on the wire


async def two(go: asyncio.Event | None = None) -> AsyncGenerator[bytes, None]:
    yield b'{"a":1}\n'
    if go is not None:
        await go.wait()
    yield b'{"b":2}\n{"c":3}\n'


async def failing() -> AsyncGenerator[bytes, None]:
    yield b'{"a":1}\n'
    raise ApiError("request_timeout", "too slow")


async def lines(request: Request) -> EventStream:
    return EventStream(two(), "gen-1", LINES)


async def broken(request: Request) -> EventStream:
    return EventStream(failing(), "gen-1", LINES)


def test_head_and_lines_are_exact() -> None:
    with LiveServer([endpoint("/lines", lines)]) as server:
        answer = server.get("/lines", "X-Request-Id: abc\r\n")
    assert answer.body == b'{"a":1}\n{"b":2}\n{"c":3}\n'
    assert {name: answer.headers[name] for name in answer.headers if name != "date"} == {
        "content-type": "application/x-ndjson",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-stream-id": "gen-1",
        "x-request-id": "abc",
        "transfer-encoding": "chunked",
    }


def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    with LiveServer([endpoint("/lines", lines)]) as server, server.connect() as client:
        client.send(b"GET /lines HTTP/1.0\r\n\r\n")
        head, _, body = client.rest().partition(b"\r\n\r\n")
    assert body == b'{"a":1}\n{"b":2}\n{"c":3}\n'
    assert b"transfer-encoding" not in head


def test_an_error_is_a_line_and_the_last() -> None:
    with LiveServer([endpoint("/broken", broken)]) as server:
        first, last = server.get("/broken").body.splitlines()
    assert first == b'{"a":1}'
    assert json.loads(last)["error"]["code"] == "request_timeout"


def test_silence_stays_silent() -> None:
    """A stream of events beside it, made before and as silent, gets its comments meanwhile."""
    go = asyncio.Event()

    async def held(request: Request) -> EventStream:
        return EventStream(two(go), "gen-1", LINES if "lines" in request.query_params else EVENTS)

    with (
        LiveServer([endpoint("/held", held)], keepalive_interval_s=0.05) as server,
        server.connect() as quiet,
        server.connect() as commented,
    ):
        for client, query in ((quiet, "lines"), (commented, "events")):
            client.send(f"GET /held?{query} HTTP/1.1\r\n\r\n".encode())
            client.until(b'{"a":1}\n\r\n')
        for _ in range(4):
            commented.until(b":ka\n\r\n")
        assert server.loop is not None
        server.loop.call_soon_threadsafe(go.set)
        assert quiet.until(b"0\r\n\r\n") == b'10\r\n{"b":2}\n{"c":3}\n\r\n0\r\n\r\n'
