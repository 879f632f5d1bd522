"""A frontend that retires: what it has begun it finishes, and its connections go on at its successor's."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from api_server.routes import Endpoint
from protocol.handover import passage
from tests.api_server.held import Held
from tests.api_server.live import DEADLINE_S, BareClient, LiveServer, endpoint, until
from tests.api_server.vocabularies import byte_level, card
from tests.fakes import MadeUpEngine

Serve = Callable[..., LiveServer]
WHO = b"GET /who HTTP/1.1\r\n\r\n"


def who(name: str) -> Endpoint:
    async def handler(request: Request) -> Response:
        return Response(name)

    return endpoint("/who", handler)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Frontends of one place, each with an address of its own, so that it is known who has a connection."""
    with ExitStack() as stack:
        way = stack.enter_context(passage())

        def serve(name: str, *endpoints: Endpoint, **settings: Any) -> LiveServer:
            ends = {"give_fd": os.dup(way.give.fileno()), "take_fd": os.dup(way.take.fileno())}
            return stack.enter_context(LiveServer([who(name), *endpoints], **ends, **settings))

        yield serve


def connections(server: LiveServer, *, begun: bool = False) -> int:
    """How many it has; those alone on which a request has begun to come."""
    assert server.server is not None
    return sum(bool(each._unread) or not begun for each in list(server.server.server_state.connections))  # type: ignore[union-attr]


def asked(client: BareClient, request: bytes = WHO) -> bytes:
    client.send(request)
    answer = client.answer()
    assert answer.status == 200
    assert "connection" not in answer.headers
    return answer.body


def test_connections_at_rest_go_on_at_the_successor(serve: Serve) -> None:
    old, new = serve("old"), serve("new")
    with old.connect() as kept, old.connect() as silent:
        assert asked(kept) == b"old"
        old.retire()
        old.join()
        with pytest.raises(ConnectionRefusedError):
            old.connect()
        assert asked(kept) == b"new"
        assert asked(silent) == b"new"
        third = serve("third")
        new.retire()
        new.join()
        assert asked(kept) == b"third"
        assert asked(silent) == b"third"
        third.stop()
        third.join()
        assert kept.rest() == b""


def test_a_moved_connection_rests_as_long_as_any_other(serve: Serve) -> None:
    old = serve("old")
    serve("new", header_timeout_s=0.3)
    with old.connect() as kept, old.connect() as silent:
        assert asked(kept) == b"old"
        old.retire()
        old.join()
        assert silent.answer().status == 408  # by then the limit of the next head is over for the other, too
        assert asked(kept) == b"new"


def test_a_moved_connection_is_closed_in_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    old = serve("old")
    monkeypatch.setattr("api_server.server.KEEP_ALIVE_S", 0.3)
    serve("new")
    with old.connect() as kept:
        assert asked(kept) == b"old"
        old.retire()
        assert kept.rest() == b""


def test_a_stream_is_finished_and_its_connection_moves_then(serve: Serve) -> None:
    held = Held()
    old = serve("old", endpoint("/held", held.handler))
    serve("new")
    with old.connect() as client, old.connect() as rests:
        client.send(b"GET /held HTTP/1.1\r\n\r\n")
        client.until(b"data: 0\n\n\r\n")
        old.retire()
        until(lambda: connections(old) == 1)
        assert asked(rests) == b"new"
        old.call(held.go.set)
        assert client.until(b"0\r\n\r\n") == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
        old.join()
        assert asked(client) == b"new"


def test_a_request_that_comes_late_is_answered_and_the_last(serve: Serve) -> None:
    old = serve("old")
    serve("new")
    with old.connect() as late, old.connect() as health, old.connect() as rests:
        late.send(WHO[:-2])
        health.send(b"GET /readyz HTTP/1.1\r\n")
        until(lambda: connections(old, begun=True) == 2)
        old.retire()
        until(lambda: connections(old) == 2)
        assert asked(rests) == b"new"
        late.send(b"\r\n")
        answer = late.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"old", "close")
        assert late.rest() == b""
        health.send(b"\r\n")
        answer = health.answer()
        assert (json.loads(answer.body)["draining"], answer.headers["connection"]) == (False, "close")
        old.join()


def test_a_signal_turns_retiring_into_a_drain(serve: Serve) -> None:
    held = Held()
    old = serve("old", endpoint("/held", held.handler))
    with old.connect() as client, old.connect() as late:
        client.send(b"GET /held HTTP/1.1\r\n\r\n")
        client.until(b"data: 0\n\n\r\n")
        late.send(WHO[:-2])
        until(lambda: connections(old, begun=True) == 1)
        old.retire()
        until(lambda: old.frontend.drain.retiring)
        old.stop()
        until(lambda: old.frontend.drain.draining)
        late.send(b"\r\n")
        assert late.answer().status == 503
        old.call(held.go.set)
        assert client.rest() == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
        old.join()


def test_what_outlasts_the_time_limit_ends_with_it(serve: Serve) -> None:
    held = Held()
    old = serve("old", endpoint("/held", held.handler), shutdown_timeout_s=0.2)
    with old.connect() as client:
        client.send(b"GET /held HTTP/1.1\r\n\r\n")
        client.until(b"data: 0\n\n\r\n")
        old.retire()
        assert b"data: 1" not in client.rest()
        old.join()


def test_many_connections_move(serve: Serve) -> None:
    """More than the passage holds at a time."""
    old = serve("old")
    serve("new")
    with ExitStack() as stack:
        clients = [stack.enter_context(old.connect()) for _ in range(400)]
        assert {asked(client) for client in clients} == {b"old"}
        old.retire()
        old.join()
        assert {asked(client) for client in clients} == {b"new"}


def test_without_a_passage_nothing_retires() -> None:
    with LiveServer([who("alone")]) as alone:
        alone.retire()
        assert alone.get("/who").body == b"alone"
        assert not alone.frontend.drain.retiring


def test_a_successor_accepts_nothing_before_it_can_serve_it(tmp_path: Path) -> None:
    path = f"ipc://{tmp_path}/e.sock"
    server = LiveServer(engine=path, successor=True)
    with BareClient(server.port) as early:
        early.send(b"GET /readyz HTTP/1.1\r\n\r\n")
        server._thread.start()
        until(lambda: server.frontend.engine._channel is not None)
        early.socket.settimeout(0.3)
        with pytest.raises(socket.timeout):
            early.socket.recv(1)
        early.socket.settimeout(DEADLINE_S)
        with MadeUpEngine(path, card=card(byte_level())):
            assert early.answer().status == 200
            server.stop()
            server.stop()
            server.join()
