"""Peers that take nothing, and peers that are gone: on real sockets."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator

import pytest
from starlette.requests import Request
from starlette.responses import Response

from api_server.body import read_body
from api_server.disconnect import until_disconnect
from api_server.sse import EventStream
from tests.api_server.gone import vanish
from tests.api_server.live import LiveServer, endpoint, until
from tests.api_server.sockets import opened

PATIENCE_S = 60.0


class Streams:
    """Streams that say something now and then, far too little to fill a buffer."""

    def __init__(self) -> None:
        self.running: set[str] = set()

    async def handler(self, request: Request) -> EventStream:
        return EventStream(self.chunks(request.query_params["name"]), "gen-1")

    async def chunks(self, name: str) -> AsyncGenerator[bytes, None]:
        self.running.add(name)
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.05)  # its pace, no condition
        finally:
            self.running.remove(name)


def test_a_reader_that_is_gone_is_found_though_its_stream_says_little() -> None:
    """What waits for it grows all the time, and none of it is ever acknowledged."""
    streams = Streams()
    with (
        LiveServer([endpoint("/stream", streams.handler)], stall_timeout_s=1.0) as server,
        server.connect() as gone,
        server.connect() as alive,
    ):
        for name, client in (("gone", gone), ("alive", alive)):
            client.socket.settimeout(PATIENCE_S)
            client.send(f"GET /stream?name={name} HTTP/1.1\r\n\r\n".encode())
            client.until(b"data: ")
        vanish(gone.socket)
        until(lambda: streams.running == {"alive"}, PATIENCE_S)
        alive.until(b"data: ")


def test_a_quiet_stream_s_reader_is_found_by_the_keep_alive() -> None:
    ended = threading.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield b"data: x\n\n"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def handler(request: Request) -> EventStream:
        return EventStream(chunks(), "gen-1")

    settings = {"stall_timeout_s": 1.0, "keepalive_interval_s": 0.1}
    with LiveServer([endpoint("/stream", handler)], **settings) as server, server.connect() as gone:
        gone.send(b"GET /stream HTTP/1.1\r\n\r\n")
        gone.until(b":ka\n")
        vanish(gone.socket)
        assert ended.wait(PATIENCE_S)


def test_who_waits_for_a_whole_body_and_is_gone_is_found_by_the_kernel() -> None:
    """Nothing is sent before the answer is complete; the probes that the listener asked for are all there is."""
    began, ended = threading.Event(), threading.Event()

    async def work() -> bytes:
        try:
            began.set()
            await asyncio.Event().wait()
            return b""
        finally:
            ended.set()

    async def handler(request: Request) -> Response:
        await read_body(request)
        return Response(await until_disconnect(request, work()))

    server = LiveServer([endpoint("/work", handler)])
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        server._listener.setsockopt(socket.IPPROTO_TCP, option, 1)
    with server, server.connect() as gone:
        gone.send(b"POST /work HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        assert began.wait(PATIENCE_S)
        vanish(gone.socket)
        assert ended.wait(PATIENCE_S)


@pytest.mark.parametrize("socket_too", [False, True])
def test_who_has_nothing_to_take_is_left_alone(socket_too: bool) -> None:
    """For several time limits a stream says nothing, or a WebSocket; then both go on."""
    go = threading.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"data: 0\n\n"
        while not go.is_set():
            await asyncio.sleep(0.01)
        yield b"data: 1\n\n"

    async def handler(request: Request) -> EventStream:
        return EventStream(chunks(), "gen-1")

    streams = Streams()
    endpoints = [endpoint("/stream", handler), endpoint("/clock", streams.handler)]
    with LiveServer(endpoints, stall_timeout_s=0.4) as server:
        client = opened(server.port) if socket_too else server.connect()
        if not socket_too:
            client.send(b"GET /stream HTTP/1.1\r\n\r\n")
            client.until(b"data: 0\n\n")
        for name in ("a", "b"):  # the measure of time: one that is gone is found, and then another
            with server.connect() as gone:
                gone.send(f"GET /clock?name={name} HTTP/1.1\r\n\r\n".encode())
                gone.until(b"data: ")
                vanish(gone.socket)
                until(lambda name=name: name not in streams.running, PATIENCE_S)  # type: ignore[misc]
        go.set()
        if socket_too:
            assert not client.ended
        else:
            client.until(b"data: 1\n\n")
        client.close()
