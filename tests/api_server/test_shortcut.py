"""Tokens that go out without a turn of the event loop: what a client reads is the same as with one."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api_server.render.chat import ChatRenderer
from api_server.shortcut import Shortcut
from api_server.text import Piece
from tests.api_server.live import BareClient, LiveServer, until
from tests.api_server.serving import serving
from tests.fakes import MadeUpDevice

STEP_S = 0.002  # so that tokens come one by one
CHAT = {"messages": [{"role": "user", "content": "Hello world"}], "max_tokens": 60, "ignore_eos": True, "seed": 1}
BODIES: dict[str, dict[str, Any]] = {
    "plain": CHAT,
    "usage": {**CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "two choices": {**CHAT, "n": 2},
    "token ids": {**CHAT, "return_token_ids": True},
    "a stop string": {**CHAT, "stop": ["user"]},
    "a stop string that is shown": {**CHAT, "stop": ["user"], "include_stop_str_in_output": True, "n": 2},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with serving(tmp_path_factory.mktemp("engine"), MadeUpDevice(step_s=STEP_S)) as (server, _):
        yield server


@contextmanager
def no_shortcuts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As under a server that offers none."""
    with monkeypatch.context() as patch:
        patch.setattr("api_server.sse.shortcut_of", lambda scope: None)
        yield


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What takes the shortcut meanwhile."""
    taken: list[bytes] = []
    write = Shortcut.write

    def count(shortcut: Shortcut, data: bytes) -> None:
        taken.append(data)
        write(shortcut, data)

    with monkeypatch.context() as patch:
        patch.setattr(Shortcut, "write", count)
        yield taken


def ask(body: dict[str, Any], headers: str = "", version: str = "1.1") -> bytes:
    text = json.dumps({**body, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n{headers}Content-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def told(body: bytes) -> dict[int, tuple[str, list[Any], list[Any]]]:
    """Of each choice its text, token ids and ends. Which chunks they came in is chance."""
    *events, done, end = body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    found: dict[int, tuple[str, list[Any], list[Any]]] = {}
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            text, numbers, ends = found.get(choice["index"], ("", [], []))
            numbers = numbers + choice.get("token_ids", [])
            finish = [(choice["finish_reason"], choice["stop_reason"])] if choice["finish_reason"] else []
            found[choice["index"]] = (text + choice["delta"].get("content", ""), numbers, ends + finish)
    return found


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_it_says_the_same(shared: LiveServer, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]) -> None:
    with counted(monkeypatch) as taken:
        fast = shared.ask(ask(body)).body
    assert taken
    with no_shortcuts(monkeypatch), counted(monkeypatch) as none_taken:
        slow = shared.ask(ask(body)).body
    assert not none_taken
    assert told(fast) == told(slow)


def test_one_token_is_one_chunk_on_the_wire(shared: LiveServer) -> None:
    with shared.connect() as client:
        client.send(ask(CHAT))
        client.until(b"\r\n\r\n")
        while size := int(client.until(b"\r\n"), 16):
            chunk = client.exactly(size)
            assert client.exactly(2) == b"\r\n"
            assert chunk.endswith(b"\n\n")
        client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        client.until(b"200 OK")  # the connection is as good as before


def test_http_1_0_gets_no_chunks(shared: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as taken, shared.connect() as client:
        client.send(ask(CHAT, version="1.0"))
        _, _, body = client.rest().partition(b"\r\n\r\n")
    assert taken
    assert told(body) == told(shared.ask(ask(CHAT)).body)


def test_who_does_not_read_gets_all_that_has_waited_and_nothing_twice(tmp_path: Path) -> None:
    """The connection is full for a while: tokens wait, are merged, and go out in order."""
    body = {**CHAT, "max_tokens": 100, "n": 8, "return_token_ids": True}
    device = MadeUpDevice()
    with serving(tmp_path, device) as (server, engine):
        expected = told(server.ask(ask(body)).body)
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = BareClient(server.port, receive_buffer=2048)
        client.socket.settimeout(30.0)
        client.send(ask(body))
        until(lambda: engine.scheduler.idle)
        _, _, rest = client.until(b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")
        client.socket.close()
    assert rest.count(b"data: ") < 8 * 100
    assert told(unchunked(rest)) == expected


def unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return body


def test_what_fails_on_the_way_ends_its_own_stream_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = ChatRenderer.chunk

    def fail(renderer: ChatRenderer, piece: Piece, usage: Any) -> bytes:
        if renderer._job.model == "tiny" and renderer._job.stop == ("broken",) and piece.pos == 20:
            raise ZeroDivisionError
        return chunk(renderer, piece, usage)

    monkeypatch.setattr(ChatRenderer, "chunk", fail)
    with serving(tmp_path, MadeUpDevice(step_s=STEP_S)) as (server, engine):
        with server.connect() as good, server.connect() as bad:
            good.send(ask(CHAT))
            bad.send(ask({**CHAT, "stop": ["broken"], "max_tokens": 200}))
            assert told(good.answer().body)[0][2] == [("length", None)]
            broken = bad.answer().body
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
    *_, last, end = broken.split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert end == b""


def test_silence_is_counted_from_the_last_token(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02), keepalive_interval_s=0.5) as (server, _):
        assert b":ka" not in server.ask(ask({**CHAT, "max_tokens": 60})).body


def test_a_client_that_leaves_ends_the_request(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine):
        with server.connect() as client:
            client.send(ask({**CHAT, "max_tokens": 200}))
            client.until(b"Hello")
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
        assert engine.device.steps < 150


def test_an_engine_that_dies_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), server.connect() as client:
        client.send(ask({**CHAT, "max_tokens": 200}))
        client.until(b"Hello")
        engine.kill()
        assert b'"code":"engine_restarting"' in client.until(b"\r\n0\r\n\r\n")


def test_an_interval_lets_tokens_wait_and_no_end(tmp_path: Path) -> None:
    """Of 60 tokens the first goes out, then what has come in the meantime, and the last one at once."""
    with serving(tmp_path, MadeUpDevice(step_s=0.01), stream_interval_ms=60_000) as (server, _):
        every = server.ask(ask({**CHAT, "n": 2, "stream_options": {"interval_ms": 0}})).body
        some = server.ask(ask({**CHAT, "n": 2, "stream_options": {"interval_ms": 200}})).body
        ends = server.ask(ask({**CHAT, "n": 2})).body
        stopped = server.ask(ask(BODIES["a stop string"] | {"stream_options": {"interval_ms": 50}})).body
        assert told(stopped) == told(server.ask(ask(BODIES["a stop string"])).body)
    assert told(every) == told(some) == told(ends)
    assert every.count(b"data: ") > some.count(b"data: ") > ends.count(b"data: ")
    # Two roles and two first tokens, at most two last chunks of each choice, and the end of the stream.
    assert ends.count(b"data: ") <= 9


def test_a_failure_does_not_wait_for_an_interval(tmp_path: Path) -> None:
    with (
        serving(tmp_path, MadeUpDevice(step_s=0.02), stream_interval_ms=60_000) as (server, engine),
        server.connect() as client,
    ):
        client.send(ask({**CHAT, "max_tokens": 200}))
        client.until(b"assistant")
        until(lambda: engine.device.steps > 5)
        engine.kill()
        assert b'"code":"engine_restarting"' in client.until(b"\r\n0\r\n\r\n")
