"""Streams over a real connection: what they look like, and that none outlives its client."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable

import pytest
from starlette.requests import Request

from api_server.errors import ApiError
from api_server.routes import make_routes
from api_server.sse import EventStream
from tests.api_server.live import BareClient, Handler, LiveServer, endpoint, until

Chunks = AsyncGenerator[bytes, None]
GET = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"


class Source:
    """A generator that is watched: how far it got, and whether it was closed."""

    def __init__(self, chunks: Callable[["Source"], Chunks]) -> None:
        self._chunks = chunks
        self.yielded = 0
        self.closed = threading.Event()
        self.go = asyncio.Event()

    async def run(self) -> Chunks:
        try:
            async for chunk in self._chunks(self):
                self.yielded += 1
                yield chunk
        finally:
            self.closed.set()

    async def handler(self, request: Request) -> EventStream:
        return EventStream(self.run(), "gen-1")


async def three(source: Source) -> Chunks:
    for number in range(3):
        yield b"data: %d\n\n" % number
    yield b"data: [DONE]\n\n"


async def one_then_wait(source: Source) -> Chunks:
    yield b"data: 0\n\n"
    await source.go.wait()
    yield b"data: 1\n\n"


async def always_ready(source: Source) -> Chunks:
    while True:
        yield b"data: x\n\n"


async def large_for_ever(source: Source) -> Chunks:
    while True:
        yield b"data: " + b"x" * 20_000 + b"\n\n"


def served(source: Source, **settings: object) -> LiveServer:
    return LiveServer([endpoint("/stream", source.handler)], **settings)


def test_head_and_events_are_exact() -> None:
    with served(Source(three)) as server:
        answer = server.get("/stream", "X-Request-Id: abc\r\n")
        assert answer.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    kept = {name: answer.headers[name] for name in answer.headers if name != "date"}
    assert kept == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
        "x-stream-id": "gen-1",
        "x-request-id": "abc",
        "transfer-encoding": "chunked",
    }


def test_one_write_per_chunk_and_the_connection_lives_on() -> None:
    with served(Source(three)) as server, server.connect() as client:
        client.send(GET)
        assert client.until(b"0\r\n\r\n").endswith(
            b"9\r\ndata: 0\n\n\r\n9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        )
        client.send(b"GET /livez HTTP/1.1\r\n\r\n")
        assert client.answer().status == 200


def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    with served(Source(three)) as server, server.connect() as client:
        client.send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = client.rest().partition(b"\r\n\r\n")
    assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


def test_silence_is_broken_by_a_bare_comment_line() -> None:
    source = Source(one_then_wait)
    with served(source, keepalive_interval_s=0.05) as server, server.connect() as client:
        client.send(GET)
        client.until(b"data: 0\n\n\r\n")
        assert client.until(b":ka\n\r\n") == b"4\r\n:ka\n\r\n"
        assert client.until(b":ka\n\r\n") == b"4\r\n:ka\n\r\n"
        assert server.loop is not None
        server.loop.call_soon_threadsafe(source.go.set)
        assert client.until(b"0\r\n\r\n").endswith(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")


def test_no_comment_where_there_is_no_silence() -> None:
    async def steady(source: Source) -> Chunks:
        for _ in range(30):
            await asyncio.sleep(0.01)
            yield b"data: x\n\n"

    with served(Source(steady), keepalive_interval_s=0.2) as server:
        assert server.get("/stream").body == b"data: x\n\n" * 30


def failing(error: Exception) -> Callable[[Source], Chunks]:
    async def fail(source: Source) -> Chunks:
        yield b"data: 0\n\n"
        raise error

    return fail


def test_an_api_error_ends_the_stream_with_an_error_event() -> None:
    with served(Source(failing(ApiError("request_timeout", "too slow")))) as server:
        events = server.get("/stream").body.split(b"\n\n")
    assert events[0] == b"data: 0"
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "request_timeout"
    assert events[2:] == [b""]


def test_any_other_exception_is_logged_and_told_as_ours(caplog: pytest.LogCaptureFixture) -> None:
    with served(Source(failing(ZeroDivisionError("secret")))) as server:
        events = server.get("/stream").body.split(b"\n\n")
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert b"secret" not in events[1]
    assert events[2:] == [b""]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("chunks", [one_then_wait, always_ready, large_for_ever])
def test_the_generator_is_closed_when_the_client_leaves(chunks: Callable[[Source], Chunks]) -> None:
    source = Source(chunks)
    with served(source) as server:
        with server.connect() as client:
            client.send(GET)
            client.until(b"data: ")
        assert source.closed.wait(5)
        assert server.get("/livez").status == 200


def test_a_generator_that_never_waits_does_not_hold_up_others() -> None:
    source = Source(always_ready)
    with served(source) as server, server.connect() as client:
        client.send(GET)
        client.until(b"data: ")
        assert server.get("/livez").status == 200


def test_a_stalled_reader_is_closed() -> None:
    source = Source(large_for_ever)
    with served(source, stall_timeout_s=0.4) as server:
        client = BareClient(server.port, receive_buffer=4096)
        client.send(GET)
        assert source.closed.wait(10)
        assert source.yielded < 1000
        client.close()


def test_a_slow_reader_is_not() -> None:
    """It takes four times the time limit, and never nothing for as long as it."""
    source = Source(large_for_ever)
    with served(source, stall_timeout_s=0.5) as server:
        client = BareClient(server.port, receive_buffer=4096)
        client.send(GET)
        taken = 0

        def take() -> bool:
            nonlocal taken
            taken += len(client.socket.recv(30_000))
            return taken > 250_000 or source.closed.wait(0.05)

        until(take)
        assert taken > 250_000
        assert not source.closed.is_set()
        client.close()


def test_shutdown_ends_a_stream_with_an_error_event() -> None:
    source = Source(one_then_wait)
    with served(source, shutdown_timeout_s=0.1) as server, server.connect() as client:
        client.send(GET)
        client.until(b"data: 0\n\n\r\n")
        server.stop()
        end = client.rest()
        server.join()
    assert b'"code":"draining"' in end
    assert b"[DONE]" not in end
    assert end.endswith(b"\n\n\r\n0\r\n\r\n")
    assert source.closed.is_set()


def test_handlers_fit_the_table() -> None:
    handler: Handler = Source(three).handler
    [route] = make_routes([endpoint("/stream", handler)])
    assert route.methods == {"GET", "POST"}
