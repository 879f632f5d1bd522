"""Clients that stop reading, close, reset or vanish, before a real engine core: what they hold is bounded, and given
back."""

import contextlib
import fcntl
import json
import socket
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_core.batch import Batch
from engine_core.scheduler import Sampled
from protocol import messages as wire
from tests.api_server.gone import reset_on_close, vanish
from tests.api_server.live import BareClient, LiveServer, until
from tests.api_server.serving import serving
from tests.fakes import MadeUpDevice, MadeUpEngine

PATIENCE_S = 60.0
READERS = 20
HELD_MAX = 40_000  # bytes: the kernel's share, and one write


def ask(stream: bool, **more: object) -> bytes:
    body = json.dumps({"prompt": "Hello", "max_tokens": 200, "ignore_eos": True, "stream": stream, **more}).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Stepwise(MadeUpDevice):
    """Makes as many steps as it is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(0)
        self.free = False

    def collect(self, pending: Batch) -> list[Sampled]:
        if not self.free:
            self.allowed.acquire(timeout=PATIENCE_S)
        return super().collect(pending)

    def go_on(self) -> None:
        """So slowly that an abort comes long before the last step."""
        self.step_s = 0.1
        self.free = True
        self.allowed.release()


@contextlib.contextmanager
def stepwise(path: Path) -> Iterator[tuple[LiveServer, MadeUpEngine, Stepwise]]:
    device = Stepwise()
    with serving(path, device, stall_timeout_s=1.0, keepalive_interval_s=0.1) as (server, engine):
        try:
            yield server, engine, device
        finally:
            device.go_on()


def steps_at_abort(engine: MadeUpEngine) -> list[int]:
    """Gets how many steps there had been when the engine heard of each abort."""
    heard: list[int] = []
    handle = engine.core._handle

    def listen(peer: bytes, command: wire.Command) -> None:
        if isinstance(command, wire.Abort):
            heard.append(engine.device.steps)
        handle(peer, command)

    engine.core._handle = listen  # type: ignore[method-assign]
    return heard


def close(client: BareClient) -> None:
    client.close()


def reset(client: BareClient) -> None:
    reset_on_close(client.socket)
    client.close()


def half_close(client: BareClient) -> None:
    client.socket.shutdown(socket.SHUT_WR)


def disappear(client: BareClient) -> None:
    vanish(client.socket)


@pytest.mark.parametrize(
    ("leave", "stream"),
    [(leave, stream) for leave in (close, reset, half_close, disappear) for stream in (True, False)][:-1],
)
def test_who_leaves_gives_its_blocks_back_within_a_step(
    tmp_path: Path, leave: Callable[[BareClient], None], stream: bool
) -> None:
    """Who disappears while nothing is sent to it is found by the kernel's probes, which test_stall has sooner."""
    with stepwise(tmp_path) as (server, engine, device), server.connect() as client:
        heard = steps_at_abort(engine)
        client.socket.settimeout(PATIENCE_S)
        client.send(ask(stream))
        for _ in range(3):
            device.allowed.release()
        until(lambda: device.steps == 3 and engine.scheduler.pool.used > 0, PATIENCE_S)
        if stream:
            client.until(b"data: ")
        leave(client)
        until(lambda: not server.frontend.engine._streams, PATIENCE_S)
        assert engine.scheduler.pool.used > 0  # a step is still under way
        device.go_on()
        until(lambda: bool(heard) and engine.scheduler.pool.used == 0, PATIENCE_S)
        [steps] = heard
        assert device.steps <= steps + 1


def test_readers_that_take_nothing_cost_little_and_are_closed(tmp_path: Path) -> None:
    """Everything is generated beside them, another stream is not kept waiting, and nothing of them is left."""
    with serving(tmp_path, MadeUpDevice(step_s=0.002), stall_timeout_s=1.5) as (server, engine):
        assert server.server is not None
        connections = server.server.server_state.connections
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least: less than an answer's text
        with contextlib.ExitStack() as stack:
            for _ in range(READERS):
                client = stack.enter_context(BareClient(server.port, receive_buffer=4096))
                client.send(ask(True, n=8))
            stalled = set()

            def all_stalled() -> bool:
                stalled.update(each for each in tuple(connections) if each.flow.write_paused)  # type: ignore[union-attr]
                return len(stalled) == READERS

            until(all_stalled, PATIENCE_S)
            with server.connect() as other:
                other.socket.settimeout(PATIENCE_S)
                other.send(ask(True, max_tokens=20))
                assert other.answer().body.endswith(b"data: [DONE]\n\n")
            for connection in stalled:
                assert held(connection) < HELD_MAX
            until(lambda: not stalled & connections, PATIENCE_S)
            until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0, PATIENCE_S)
            assert server.frontend.engine._streams == {}


def held(connection: Any) -> int:
    """Bytes written for its peer that were not acknowledged, ours and the kernel's."""
    descriptor = connection.transport.get_extra_info("socket").fileno()
    kernel = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0" * 4) if descriptor >= 0 else b"\0" * 4
    return int(connection.transport.get_write_buffer_size()) + int.from_bytes(kernel, sys.byteorder)
