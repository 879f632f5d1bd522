"""A frontend process that has few descriptors: those it serves go on, newcomers are told, and none of it costs time."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_server.live import BareClient, until
from tests.api_server.serving import CARD
from tests.api_server.test_gone_clients import ask
from tests.e2e.server import ROOT
from tests.fakes import MadeUpDevice, MadeUpEngine

PATIENCE_S = 60.0
LIMIT = 400
SERVED = 300  # by a process with so few
IDLE_SHARE = 0.3  # of a core; a loop that is told of the same connection over and over takes as much as it gets


@contextlib.contextmanager
def process(tmp_path: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    environ = os.environ | {"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", "TOKENWIRE_PORT": str(port)}
    limits = (LIMIT // 4, LIMIT)  # soft and hard
    running = subprocess.Popen(
        [sys.executable, "-m", "api_server"],
        cwd=ROOT,
        env=environ,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
    )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGCONT)
        running.kill()
        running.wait(PATIENCE_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def status(port: int, request: bytes = b"GET /v1/models HTTP/1.1\r\n\r\n") -> int:
    """0 if the connection is refused, or ends without an answer."""
    try:
        with BareClient(port) as client:
            client.socket.settimeout(PATIENCE_S)
            client.send(request)
            return client.answer().status
    except (OSError, AssertionError):
        return 0


def computed_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Port and process."""
    device = MadeUpDevice(step_s=0.05)
    port = free_port()
    with MadeUpEngine(f"ipc://{tmp_path}/e.sock", device=device, card=CARD), process(tmp_path, port) as running:
        until(lambda: status(port) == 200, PATIENCE_S)
        yield port, running.pid


def crowd(stack: contextlib.ExitStack, port: int, count: int) -> list[BareClient]:
    """That many connections, each of which has had an answer."""
    clients = []
    for _ in range(count):
        client = stack.enter_context(BareClient(port))
        client.socket.settimeout(PATIENCE_S)
        client.send(b"GET /livez HTTP/1.1\r\n\r\n")
        assert client.answer().status == 200
        clients.append(client)
    return clients


def test_the_limit_is_raised_and_where_there_is_no_room_newcomers_are_told(frontend: tuple[int, int]) -> None:
    """Those who were there before go on, health is told all the same, and room that is made is used."""
    port, pid = frontend
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("Max open files")]
    assert line.split()[3:5] == [str(LIMIT), str(LIMIT)]
    with contextlib.ExitStack() as stack:
        first, *others = crowd(stack, port, SERVED)
        with BareClient(port) as late:
            late.socket.settimeout(PATIENCE_S)
            late.send(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            answer = late.answer()
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            assert b'"code":"queue_full"' in answer.body
            assert late.rest() == b""
        assert status(port, b"GET /livez HTTP/1.1\r\n\r\n") == 200
        first.send(ask(False, max_tokens=5))
        assert first.answer().status == 200
        for client in others[:3]:
            client.close()
        until(lambda: status(port) == 200, PATIENCE_S)


def test_a_flood_ends_no_stream_and_does_not_spin(frontend: tuple[int, int]) -> None:
    """More come at once than there are descriptors, and stay."""
    port, pid = frontend
    with BareClient(port) as stream, contextlib.ExitStack() as stack:
        stream.socket.settimeout(PATIENCE_S)
        stream.send(ask(True, max_tokens=120))
        stream.until(b"data: ")
        os.kill(pid, signal.SIGSTOP)
        for _ in range(2 * LIMIT):
            stack.enter_context(BareClient(port))
        os.kill(pid, signal.SIGCONT)
        stream.until(b"data: ")
        begin_s, before_s = time.monotonic(), computed_s(pid)
        for _ in range(40):  # some seconds of the device's steps
            stream.until(b"data: ")
        assert computed_s(pid) - before_s < max(0.5, IDLE_SHARE * (time.monotonic() - begin_s))
        stack.close()
        until(lambda: status(port) == 200, PATIENCE_S)
        stream.until(b"data: [DONE]")
