"""One listening socket, several frontends: who takes a connection, and that somebody always does."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from api_server.board import Board
from tests.api_server.live import NOWHERE, BareClient, LiveServer, until

ROOT = Path(__file__).parents[2]
WORKERS = 4
PATIENCE_S = 60.0  # for a process to start on a busy machine


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def board() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


@contextmanager
def burst(listener: socket.socket, count: int) -> Iterator[list[BareClient]]:
    """So many connections at once, each with an answer."""
    with ExitStack() as stack:
        clients = [stack.enter_context(BareClient(listener.getsockname()[1])) for _ in range(count)]
        for client in clients:
            client.socket.settimeout(PATIENCE_S)
            client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        for client in clients:
            assert client.answer().status == 200
        yield clients


def connections(servers: list[LiveServer]) -> list[int]:
    return [len(server.server.server_state.connections) for server in servers if server.server is not None]


def test_a_burst_is_shared_and_so_is_the_next_after_some_have_left(listener: socket.socket, board: int) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(LiveServer(listener=listener, board_fd=board)) for _ in range(WORKERS)]
        with burst(listener, 64) as clients:
            assert sum(connections(servers)) == 64
            assert max(connections(servers)) <= 2 * 64 / WORKERS
            for client in clients[:48]:
                client.close()
            until(lambda: sum(connections(servers)) == 16)
            with burst(listener, 48):
                assert max(connections(servers)) <= 2 * 64 / WORKERS
        until(lambda: sum(connections(servers)) == 0)


def test_who_comes_later_catches_up(listener: socket.socket, board: int) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(LiveServer(listener=listener, board_fd=board))
        stack.enter_context(burst(listener, 40))
        second = stack.enter_context(LiveServer(listener=listener, board_fd=board))
        stack.enter_context(burst(listener, 40))
        assert sum(connections([first, second])) == 80
        assert connections([second])[0] > 20  # all forty, if nothing held it up


def test_one_that_takes_none_holds_up_nobody(listener: socket.socket, board: int) -> None:
    """It has stopped just now, with no connection to its name."""
    stuck = Board(board)
    stuck.connections = 0
    stuck.beat()
    with LiveServer(listener=listener, board_fd=board) as server, burst(listener, 50):
        assert connections([server]) == [50]
    stuck.close()


def test_without_room_for_another_it_waits_until_there_is(tmp_path: Path) -> None:
    """A process that may have some descriptors only: connections beyond them stay in the kernel's queue."""
    command = [sys.executable, "-m", "api_server", "--port", "0", "--engine", NOWHERE]
    log = tmp_path / "log.txt"
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener, log.open("w") as errors:
        environ = {**os.environ, "TOKENWIRE_LISTEN_FD": str(listener.fileno())}
        process = subprocess.Popen(command, cwd=ROOT, env=environ, pass_fds=[listener.fileno()], stderr=errors)
        try:
            with burst(listener, 1):
                used = len(os.listdir(f"/proc/{process.pid}/fd"))
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
            with ExitStack() as stack:
                clients = [stack.enter_context(BareClient(listener.getsockname()[1])) for _ in range(20)]
                until(lambda: "no room for another connection" in log.read_text(), PATIENCE_S)
                for client in clients[:12]:
                    client.close()
                for client in clients[12:]:
                    client.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                for client in clients[12:]:
                    client.socket.settimeout(PATIENCE_S)
                    assert client.answer().status == 200
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
    assert process.returncode == 0
