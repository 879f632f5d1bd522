"""One request at a time: what a connection makes of bytes that come early, late, in pieces, or under a false flag."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api_server.body import read_body
from api_server.bounds import READ_AHEAD
from api_server.disconnect import until_disconnect
from api_server.extent import SLICE
from api_server.sse import EventStream
from deploy.sockets import listen
from tests.api_server.held import Held
from tests.api_server.live import BareClient, LiveServer, endpoint, until

HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n"
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"


async def hello(request: Request) -> Response:
    return Response("hello")


async def echo(request: Request) -> Response:
    return Response(await read_body(request), headers={"X-Seen": ",".join(sorted(request.headers))})


async def sink(request: Request) -> Response:
    """Answers without a look at the body."""
    return Response("no", 401)


@contextlib.contextmanager
def holding(**settings: object) -> Iterator[tuple[LiveServer, BareClient, Held]]:
    """A server, and a client in the middle of its stream."""
    held = Held()
    endpoints = [endpoint("/held", held.handler), endpoint("/hello", hello), endpoint("/echo", echo)]
    with LiveServer(endpoints, **settings) as server, server.connect() as client:
        client.send(HELD)
        client.until(b"data: 0\n\n\r\n")
        yield server, client, held


def let_go(server: LiveServer, held: Held) -> None:
    assert server.loop is not None
    server.loop.call_soon_threadsafe(held.go.set)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    endpoints = [endpoint("/hello", hello), endpoint("/echo", echo), endpoint("/sink", sink)]
    with LiveServer(endpoints, header_timeout_s=5.0, body_timeout_s=5.0, max_body_size=300_000) as live:
        yield live


# ---------------------------------------------------------------------------------------------------- upgrades


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def in_pieces(client: BareClient, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        client.send(data[start : start + size])


def upgrading(body: bytes, framing: str = "") -> bytes:
    framing = framing or f"Content-Length: {len(body)}\r\n"
    return f"POST /echo HTTP/1.1\r\nHost: x\r\n{H2C}{framing}\r\n".encode() + body


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_an_upgrade_that_is_not_served_is_ignored_and_its_body_stays_one(server: LiveServer, step: int) -> None:
    """Were the body taken for the next request, its answer would come here."""
    for request in (upgrading(HELLO), upgrading(chunk(HELLO) + b"0\r\n\r\n", "Transfer-Encoding: chunked\r\n")):
        with server.connect() as client:
            in_pieces(client, request + HELLO, step)
            answer = client.answer()
            assert (answer.status, answer.body) == (200, HELLO)
            assert "upgrade" not in answer.headers["x-seen"].split(",")
            assert client.answer().body == b"hello"


def test_the_body_of_an_ignored_upgrade_has_its_time_limit() -> None:
    with LiveServer([endpoint("/echo", echo)], body_timeout_s=0.2) as server, server.connect() as client:
        client.send(upgrading(HELLO)[:-5])
        assert client.answer().status == 408
        assert client.rest() == b""


@pytest.mark.parametrize("field", ["Upgrade : h2c", "Upgrade: h2c\n\nGET /hello HTTP/1.1", "Upgrade: h2c\r\n more"])
def test_an_upgrade_that_is_written_oddly_is_refused(server: LiveServer, field: str) -> None:
    with server.connect() as client:
        client.send(
            f"POST /echo HTTP/1.1\r\nConnection: Upgrade\r\n{field}\r\nContent-Length: 1\r\n\r\n1".encode() + HELLO
        )
        assert client.answer().status == 400
        assert client.rest() == b""


def test_connect_is_refused_and_nothing_behind_it_is_a_request(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(b"CONNECT a:1 HTTP/1.1\r\n\r\n" + HELLO)
        assert client.answer().status == 400
        assert client.rest() == b""


# ---------------------------------------------------------------------------------------------------- any split


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100_000])
def test_requests_are_the_same_however_they_are_cut(server: LiveServer, step: int) -> None:
    """Bodies full of what looks like their own end, or like the next request."""
    tricky = b"\r\n\r\n\r\n0\r\n\r\n" + HELLO
    chunked = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    sized = b"POST /echo HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(tricky)
    requests = HELLO + b"\r\n" + chunked + chunk(tricky) * 2 + b"0\r\nTrailer: t\r\n\r\n" + sized + tricky + HELLO
    with server.connect() as client:
        in_pieces(client, requests, step)
        answers = [client.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert [answer.body for answer in answers] == [b"hello", tricky * 2, tricky, b"hello"]
    assert "trailer" not in answers[1].headers["x-seen"]


@pytest.mark.parametrize("begun", [b"GET /livez HTTP/1.1\r\na: ", b"GET /livez HTTP/1.1\r\n", b"G"])
def test_an_unfinished_head_counts_from_its_first_byte(server: LiveServer, begun: bytes) -> None:
    with server.connect() as client:
        client.send(begun + b"x" * 40_000)
        answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (431, "close")


def test_a_head_that_is_too_large_is_refused_in_the_shape_of_its_own_path(server: LiveServer) -> None:
    """Not in that of the request before it."""
    large = b" HTTP/1.1\r\na: " + b"x" * 40_000
    with server.connect() as client:
        client.send(HELLO)
        assert client.answer().status == 200
        client.send(b"POST /v1/messages?beta=true" + large)
        assert json.loads(client.answer().body)["type"] == "error"
    with server.connect() as client:
        client.send(b"GET /v1/messages HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 404
        client.send(b"GET /hello" + large)
        assert "type" not in json.loads(client.answer().body)


@pytest.mark.parametrize("begun", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.0\n\n", b"GET / HTTP/1.1\r\na: b\nc: d"])
def test_what_can_t_become_a_request_is_refused_at_once(server: LiveServer, begun: bytes) -> None:
    assert server.ask(begun).status == 400


@pytest.mark.parametrize(
    "body",
    [chunk(b"\r\n" * 100_000), chunk(b"0\r\n\r\n" * 40_000), chunk(b" ") * 33_000],
    ids=["blank lines", "ends", "small chunks"],
)
def test_chunks_are_taken_in_portions_whatever_is_in_them(
    server: LiveServer, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, sizes = HttpToolsProtocol.data_received, []

    def watched(self: HttpToolsProtocol, data: bytes) -> None:
        sizes.append(len(data))
        parse(self, data)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", watched)
    head = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as client:
        client.send(head + body + b"0\r\n\r\n" + HELLO)
        assert client.answer().status == 200
        assert client.answer().body == b"hello"
    assert max(sizes) <= SLICE
    assert len(sizes) < 200


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        (b"", 400), (b"-5", 400), (b"+5", 400), (b"0x5", 400), (b"1_0", 400), (b"f" * 17, 400), (b"g", 400),
        (b"5\n", 400), (b"\r", 400), (b"5;" + b"x" * 9000, 400), (b"5;a=b", 200), (b"005", 200), (b"5;a=\"b\"", 200),
    ],
)  # fmt: skip
def test_the_size_of_a_chunk_is_a_plain_number(server: LiveServer, framing: bytes, status: int) -> None:
    head = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as client:
        client.send(head + framing + b"\r\nabcde\r\n0\r\n\r\n")
        assert client.answer().status == status


def test_a_trailer_without_an_end_is_refused(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 9000)
        assert client.answer().status == 400


# ---------------------------------------------------------------------------------------------------- later requests


@pytest.mark.parametrize(
    "later",
    [b"GET /hel", b"\r\n", b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\n", b"\x00\x01", b"x" * 40_000],
    ids=["part of a head", "nothing", "no body", "no HTTP", "endless"],
)
def test_a_stream_is_not_disturbed_by_what_follows_it(later: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_server.bounds.BODY_SLACK_S", 0.0)
    with holding(header_timeout_s=0.2, body_timeout_s=0.2) as (server, client, held):
        client.send(later)
        with server.connect() as silent:
            assert silent.answer().status == 408  # by now its limits would be over
        assert not client.ended
        let_go(server, held)
        assert client.until(b"0\r\n\r\n").endswith(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")
        client.rest()  # what followed has its own end


def test_the_time_of_a_later_request_begins_at_its_turn() -> None:
    with holding(header_timeout_s=0.3) as (server, client, held):
        client.send(HELLO[:-4])
        with server.connect() as silent:
            assert silent.answer().status == 408  # the limit is over, had it begun
        let_go(server, held)
        client.until(b"0\r\n\r\n")
        client.send(HELLO[-4:])
        assert client.answer().body == b"hello"
        client.send(HELLO[:-4])
        assert client.answer().status == 408


@pytest.mark.parametrize("count", [1000, 12_000])
def test_any_number_of_pipelined_requests_is_answered_in_order(count: int) -> None:
    """The larger number is more than what is read ahead."""
    requests = b"".join(b"POST /echo HTTP/1.1\r\nContent-Length: 6\r\n\r\n%06d" % number for number in range(count))
    with holding() as (server, client, held):
        sender = threading.Thread(target=client.send, args=(requests,))
        sender.start()
        if len(requests) > READ_AHEAD:
            assert server.server is not None
            (connection,) = server.server.server_state.connections
            until(lambda: bool(connection.flow.read_paused))  # type: ignore[union-attr]
        let_go(server, held)
        client.until(b"0\r\n\r\n")
        assert all(client.answer().body == b"%06d" % number for number in range(count))
        sender.join()


# ---------------------------------------------------------------------------------------------------- early answers


EXPECTING = "Expect: 100-continue\r\nContent-Length: 100000"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST /echo HTTP/1.1\r\nContent-Type: text/plain\r\n{EXPECTING}", 415),
        (f"POST /sink HTTP/1.1\r\n{EXPECTING}", 401),
        (f"GET /nope HTTP/1.1\r\n{EXPECTING}", 404),
        ("POST /echo HTTP/1.1\r\nContent-Length: 400000", 413),
        ("POST /sink HTTP/1.1\r\nTransfer-Encoding: chunked", 401),
    ],
)
def test_an_answer_without_the_whole_request_is_the_last(server: LiveServer, head: str, status: int) -> None:
    """The next request is no part of the missing body and gets no answer either: its client has been told."""
    with server.connect() as client:
        client.send(head.encode() + b"\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        with contextlib.suppress(OSError):
            client.send(HELLO)
        assert client.rest() == b""


def test_who_is_told_to_continue_keeps_the_connection(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(b"POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"ab" + HELLO)
        first = client.answer()
        assert (first.body, first.headers.get("connection")) == (b"ab", None)
        assert client.answer().body == b"hello"


def test_an_early_answer_is_not_lost_while_the_body_is_still_sent(server: LiveServer) -> None:
    """A client that sends it all before it reads: closing at once would reset the connection."""
    with server.connect() as client:
        client.send(b"POST /sink HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        for _ in range(9):
            client.send(b"x" * 100_000)
        assert client.answer().status == 401
        assert client.rest() == b""


# ---------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("half", [True, False])
def test_a_client_that_ends_its_side_is_gone(half: bool) -> None:
    """A full close looks like half of one until something is written, so that neither is waited for: an answer in one
    piece would be worked on for its whole length."""
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def handler(request: Request) -> Response:
        await until_disconnect(request, work())
        return Response("never")

    with LiveServer([endpoint("/never", handler)]) as server, server.connect() as client:
        client.send(b"GET /never HTTP/1.1\r\n\r\n")
        assert begun.wait(10)
        if half:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.rest() == b""
        else:
            client.close()
        assert ended.wait(10)


# ---------------------------------------------------------------------------------------------------- slow readers


async def large(request: Request) -> EventStream:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(40):
            yield b"data: " + b"x" * 20_000 + b"\n\n"

    return EventStream(chunks(), "gen-1")


def test_a_slow_reader_keeps_its_stream_on_the_supervisor_s_listener() -> None:
    """It takes a little all the time, never enough for the kernel to send a whole segment, for many time limits."""
    server = LiveServer([endpoint("/large", large)], stall_timeout_s=0.5)
    server._listener.close()
    server._listener = listen("127.0.0.1", 0)
    server.port = server._listener.getsockname()[1]
    with server:
        client = BareClient(server.port, receive_buffer=4096)
        client.send(b"GET /large HTTP/1.1\r\n\r\n")
        taken = 0
        while taken < 60_000:
            data = client.socket.recv(1000)
            assert data, "the stream was cut"
            taken += len(data)
            time.sleep(0.05)  # its pace, no condition
        client.close()


def test_a_reader_that_takes_nothing_of_its_last_bytes_is_let_go() -> None:
    """The answer is complete, and what is left fits the buffer: nobody waits for it but the connection."""

    async def handler(request: Request) -> Response:
        return Response(b"x" * 5_000_000, headers={"Connection": "close"})

    with LiveServer([endpoint("/large", handler)], stall_timeout_s=0.4) as server:
        client = BareClient(server.port, receive_buffer=4096)
        client.send(b"GET /large HTTP/1.1\r\n\r\n")
        client.until(b"\r\n\r\n")
        assert server.server is not None
        connections = server.server.server_state.connections
        assert connections
        until(lambda: not connections)
        client.close()
