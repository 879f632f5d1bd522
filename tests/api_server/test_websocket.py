"""What a WebSocket's connection puts up with: bare frames against a live server."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api_server.multiplex import Session
from api_server.routes import API
from tests.api_server.live import BareClient, LiveServer, until
from tests.api_server.serving import serving
from tests.api_server.sockets import BINARY, CLOSE, PING, PONG, TEXT, SocketClient, frame, opened, unmasked
from tests.fakes import MadeUpDevice

BAD = frame(b"{")
LONG = {"prompt": "Hello world" * 3, "max_tokens": 200, "ignore_eos": True, "n": 8}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer(API, max_body_size=50_000) as live:
        yield live


def code(client: BareClient) -> str:
    """Of the next message, which is an error."""
    kind, payload = unmasked(client)
    assert kind == TEXT
    found: str = json.loads(payload)["error"]["code"]
    return found


def closing(client: BareClient) -> int:
    """The code of the close frame that comes next, whatever comes before it, and then the connection ends."""
    while (received := unmasked(client))[0] != CLOSE:
        pass
    client.send(frame(received[1], CLOSE))
    assert client.rest() == b""
    return int.from_bytes(received[1][:2])


def connection(server: LiveServer) -> Any:
    assert server.server is not None
    until(lambda: server.server is not None and len(server.server.server_state.connections) == 1)
    [found] = server.server.server_state.connections
    return found


# ---------------------------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("step", [1, 3, 1000, 100_000])
def test_frames_are_the_same_however_they_are_cut(server: LiveServer, step: int) -> None:
    data = BAD + frame(b"ping", PING) + frame(b"[" * 20_000, BINARY) + frame(b"x" * 300) + BAD
    with opened(server.port) as client:
        for start in range(0, len(data), step):
            client.send(data[start : start + step])
        heard = [unmasked(client) for _ in range(5)]
    assert sorted(kind for kind, _ in heard) == [TEXT] * 4 + [PONG]
    assert (PONG, b"ping") in heard


def test_a_message_of_many_fragments_is_one_message(server: LiveServer) -> None:
    text = json.dumps({"type": "cancel", "id": "grün"}, ensure_ascii=False).encode()
    pieces = [text[index : index + 1] for index in range(len(text))]
    with opened(server.port) as client:
        client.send(frame(b"", fin=False))
        for number, piece in enumerate(pieces):
            client.send(frame(piece, 0, fin=False) + frame(b"", 0, fin=False))
            if number == 3:
                client.send(frame(b"between", PING))
        client.send(frame(b"", 0))
        assert unmasked(client) == (PONG, b"between")
        _, payload = unmasked(client)
        assert "grün" in json.loads(payload)["error"]["message"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame(b"\xff"), 1007),
        (frame(b"x", 3), 1002),
        (frame(b"x", 0), 1002),
        (b"\x81\x01x", 1002),
        (frame(b"x" * 200, PING), 1002),
        (frame(b"\x03\xe8bye", CLOSE), 1000),
        (frame(b"", CLOSE), 0),
    ],
    ids=["no UTF-8", "no opcode", "no beginning", "no mask", "a long ping", "a close", "a close without a code"],
)
def test_a_breach_of_the_protocol_closes_it(server: LiveServer, data: bytes, expected: int) -> None:
    with opened(server.port) as client:
        client.send(data)
        kind, payload = unmasked(client)
        assert (kind, int.from_bytes(payload[:2])) == (CLOSE, expected)
        assert client.rest() == b""


def test_a_message_over_the_limit_is_an_error_and_one_far_over_it_the_end(server: LiveServer) -> None:
    with opened(server.port) as client:
        client.send(frame(b"x" * 50_001))
        assert code(client) == "request_too_large"
        client.send(frame(b"x" * 50_000))
        assert code(client) == "invalid_json"
        client.send(frame(b"x" * 100_001)[:1000])
        assert closing(client) == 1009
    with opened(server.port) as client:
        for _ in range(3):
            client.send(frame(b"x" * 40_000, 1 if _ == 0 else 0, fin=False))
        assert closing(client) == 1009


def test_a_message_that_never_ends_closes_it() -> None:
    with LiveServer(API, body_timeout_s=0.2) as server:
        for begun in (BAD[:3], frame(b"{", fin=False)):
            with opened(server.port) as patient, opened(server.port) as client:
                client.send(begun)
                assert closing(client) == 1008
                patient.send(BAD)  # who has begun nothing has time
                assert code(patient) == "invalid_json"


# ---------------------------------------------------------------------------------------------------- silence


def test_a_silent_client_is_pinged_and_one_that_is_gone_is_closed() -> None:
    with (
        LiveServer(API, keepalive_interval_s=0.05, stall_timeout_s=1.5) as server,
        SocketClient(server.port) as alive,  # whose library answers pings
        opened(server.port) as gone,
    ):
        assert gone.rest()[:2] == b"\x89\x04"
        alive.say("{")
        assert alive.hear()["error"]["code"] == "invalid_json"


# ---------------------------------------------------------------------------------------------------- slow readers


def test_a_reader_that_takes_nothing_is_closed_and_gives_its_blocks_back(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.002), stall_timeout_s=0.5) as (server, engine):
        client = opened(server.port, receive_buffer=4096)
        for name in range(30):
            client.send(frame(json.dumps({"type": "generate", "id": str(name), "body": LONG}).encode()))
        until(lambda: not connection_is_writable(server))
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0, 30.0)
        assert server.server is not None
        until(lambda: not server.server.server_state.connections)  # type: ignore[union-attr]
        client.close()


def connection_is_writable(server: LiveServer) -> bool:
    return bool(connection(server).writable.is_set())


def test_what_a_slow_reader_has_not_taken_is_merged(tmp_path: Path) -> None:
    """Everything is generated long before it reads on: then it gets few and large chunks, and every token."""
    body = {"prompt": "Hello world", "max_tokens": 200, "ignore_eos": True, "return_token_ids": True, "n": 8}
    with serving(tmp_path) as (server, engine):
        client = opened(server.port, receive_buffer=4096)
        names = [str(name) for name in range(20)]
        for name in names:
            client.send(frame(json.dumps({"type": "generate", "id": name, "body": body}).encode()))
        until(lambda: not connection_is_writable(server))
        until(lambda: engine.scheduler.idle and not server.frontend.engine._streams)
        assert connection(server).transport.get_write_buffer_size() < 200_000
        tokens = dict.fromkeys(names, 0)
        heard = 0
        while names:
            message = json.loads(unmasked(client)[1])
            heard += 1
            if message["type"] == "done":
                names.remove(message["id"])
            else:
                tokens[message["id"]] += len(message["data"]["choices"][0]["token_ids"])
        client.close()
    assert set(tokens.values()) == {8 * 200}
    assert heard < 20 * 8 * 10


@pytest.mark.parametrize(
    "flood", [frame(b"x" * 100, PING), BAD, frame(b"", 0, fin=False)], ids=["pings", "bad", "empty"]
)
def test_a_flood_from_one_that_does_not_read_has_an_end(flood: bytes) -> None:
    """It can't send more than the kernels' buffers hold, or what it sends is thrown away."""
    with LiveServer(API) as server:
        client = opened(server.port, receive_buffer=4096)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        client.send(frame(b"", fin=False) if flood[0] == 0 else b"")
        client.socket.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                client.send(flood * 1000)
        protocol = connection(server)
        assert protocol.transport.get_write_buffer_size() < 100_000
        assert len(protocol._unread) < 600_000
        assert len(protocol.frames) <= 1
        assert server.get("/livez").status == 200
        client.close()


def test_a_burst_of_small_frames_is_taken_in_portions(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, sizes = WebSocketsSansIOProtocol.data_received, []

    def watched(self: WebSocketsSansIOProtocol, data: bytes) -> None:
        sizes.append(len(data))
        parse(self, data)

    monkeypatch.setattr(WebSocketsSansIOProtocol, "data_received", watched)
    with opened(server.port) as client:
        client.send((BAD * 500 + frame(b"x", PING) * 500) * 20)
        kinds = [unmasked(client)[0] for _ in range(20_000)]
    assert kinds.count(PONG) == kinds.count(TEXT) == 10_000
    assert max(sizes[1:]) <= 4096


# ---------------------------------------------------------------------------------------------------- our bugs


def test_our_bugs_close_it_and_are_logged(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Session) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Session, "run", broken)
    with opened(server.port) as client:
        assert closing(client) == 1011
    assert "WS /v1/ws failed" in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


def test_a_client_that_has_left_is_no_bug(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def left(self: Session) -> None:
        raise ClientDisconnected

    monkeypatch.setattr(Session, "run", left)
    with caplog.at_level("DEBUG", "tokenwire.request"), opened(server.port) as client:
        assert client.rest() == b""
        until(lambda: "WS /v1/ws 499" in caplog.text)
    assert "failed" not in caplog.text
