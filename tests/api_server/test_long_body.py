"""Long bodies over a real socket: whole, chunked or not, and given up with their reader."""

import itertools
import json
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import Request

from api_server.long_body import WRITE_SIZE, LongBody
from tests.api_server.live import LiveServer, endpoint, until

LINE = b'"' + b"x" * 998 + b'",'


class Parts:
    """A list of `count` texts, or one without an end; counts what was asked for."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.made = 0
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield b"["
            for _ in itertools.count() if self.count is None else range(self.count):
                self.made += 1
                yield LINE
            yield b"0]"
        finally:
            self.closed.set()


def serving(parts: Parts) -> LiveServer:
    async def long(request: Request) -> LongBody:
        return LongBody(iter(parts))

    return LiveServer([endpoint("/long", long)])


@pytest.mark.parametrize(("count", "chunked"), [(3, False), (2000, True)])
def test_a_body_arrives_whole_and_a_short_one_with_its_length(count: int, chunked: bool) -> None:
    with serving(Parts(count)) as server:
        answer = server.get("/long")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert ("content-length" not in answer.headers) is chunked
    assert len(json.loads(answer.body)) == count + 1


def test_no_more_is_made_than_is_read_and_nothing_once_the_reader_has_left() -> None:
    parts = Parts(None)
    with serving(parts) as server:
        with server.connect() as client:
            client.send(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
            client.until(b"\r\n\r\n")
            looks: list[int] = []

            def rests() -> bool:
                looks.append(parts.made)
                return len(looks) > 20 and looks[-20] == looks[-1] > 0

            until(rests)
            made = parts.made
            assert server.get("/livez").status == 200
            assert made * len(LINE) < 200 * WRITE_SIZE
            client.exactly(4 * WRITE_SIZE)
        until(parts.closed.is_set)
        assert parts.made > made


def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    with serving(Parts(500)) as server, server.connect() as client:
        client.send(b"GET /long HTTP/1.0\r\nHost: x\r\n\r\n")
        client.until(b"\r\n\r\n")
        assert len(json.loads(client.rest())) == 501


def test_a_part_that_fails_ends_the_connection_inside_the_body() -> None:
    async def broken(request: Request) -> LongBody:
        def parts() -> Iterator[bytes]:
            yield b"[" + LINE * 100
            raise RuntimeError("made up")

        return LongBody(parts())

    with LiveServer([endpoint("/broken", broken)]) as server, server.connect() as client:
        client.send(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        client.until(b"\r\n\r\n")
        assert not client.rest().endswith(b"0\r\n\r\n")
