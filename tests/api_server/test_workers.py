"""Several frontends behind one address: threads here, but with the board, engine and listener that processes have."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from api_server.board import Board
from api_server.routes import API
from tests.api_server.live import LiveServer, until
from tests.api_server.scraping import ENDLESS, LONG, post, samples, value
from tests.fakes import MadeUpDevice, MadeUpEngine

COUNTED = "tokenwire_http_requests_total"
Start = Callable[[], LiveServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a frontend that shares the board of the others, and has a port of its own to be asked on."""
    board = os.memfd_create("test")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(LiveServer(API, engine=f"ipc://{tmp_path}/e.sock", board_fd=board))
    os.close(board)


@contextmanager
def engine(tmp_path: Path, **options: int) -> Iterator[MadeUpEngine]:
    device = MadeUpDevice(step_s=0.005)
    with MadeUpEngine(f"ipc://{tmp_path}/e.sock", device=device, card=LONG, num_blocks=4001, **options) as made:  # type: ignore[arg-type]
        yield made


def until_ready(servers: list[LiveServer]) -> None:
    until(lambda: all(server.get("/readyz").status == 200 for server in servers), 30)


def stop(server: LiveServer) -> None:
    server.stop()
    server.stop()
    server.join()


def completions(server: LiveServer) -> float:
    return value(server, COUNTED, route="/v1/completions", code="200")


def test_any_of_them_tells_of_all_and_of_the_engine_once(tmp_path: Path, start: Start) -> None:
    servers = [start() for _ in range(3)]
    with engine(tmp_path, epoch=5):
        until_ready(servers)
        clients = [post(server, ENDLESS) for server in servers for _ in range(2)]
        for server in servers:
            until(lambda server=server: completions(server) == 6)  # type: ignore[misc]
            assert value(server, "tokenwire_streams") == 6
            until(lambda server=server: value(server, "vllm:prompt_tokens_total") == 18)  # type: ignore[misc]
            assert value(server, "vllm:num_requests_running") == 6
            assert value(server, "tokenwire_engine_epoch") == 5
            until(lambda server=server: value(server, "tokenwire_engine_up") == 1)  # type: ignore[misc]
            until(lambda server=server: value(server, "tokenwire_heartbeat_age_seconds") < 3)  # type: ignore[misc]
        for client in clients:
            client.close()
        for server in servers:
            until(lambda server=server: value(server, "tokenwire_client_disconnects_total") == 6)  # type: ignore[misc]
            until(lambda server=server: value(server, "tokenwire_streams") == 0)  # type: ignore[misc]
            until(lambda server=server: value(server, "tokenwire_aborts_total") == 6)  # type: ignore[misc]


def test_what_one_has_counted_outlives_it_and_its_successor_goes_on(tmp_path: Path, start: Start) -> None:
    first, second = start(), start()
    with engine(tmp_path):
        until_ready([first, second])
        clients = [post(first, ENDLESS), post(second, ENDLESS)]
        until(lambda: completions(second) == 2)
        stop(first)
        assert completions(second) == 2
        until(lambda: value(second, "tokenwire_streams") == 1)
        third = start()
        until_ready([third])
        assert completions(third) == 2
        with post(third, 3):
            until(lambda: completions(second) == 3)
        until(lambda: value(third, "vllm:prompt_tokens_total") == value(second, "vllm:prompt_tokens_total") == 9)
        for client in clients:
            client.close()


def test_one_that_has_just_come_knows_what_the_engine_told_the_others(tmp_path: Path, start: Start) -> None:
    first = start()
    with engine(tmp_path):
        until_ready([first])
        with post(first, 2) as client:
            client.until(b"[DONE]")
        until(lambda: value(first, "vllm:generation_tokens_total") == 2)
        assert value(start(), "vllm:generation_tokens_total") == 2
        stop(first)
        assert value(start(), "vllm:generation_tokens_total") == 2


def cumulative(server: LiveServer) -> dict[str, float]:
    """Every series that may not go back."""
    endings = ("_total", "_bucket", "_count")
    return {f"{each.name}{sorted(each.labels.items())}": each.value for each in samples(server)
            if each.name.endswith(endings)}  # fmt: skip


def test_nothing_ever_goes_back_whoever_is_asked(tmp_path: Path, start: Start) -> None:
    """While requests run, while a frontend is replaced, and while the engine is lost, but for its own figures."""
    servers = [start() for _ in range(3)]
    fallen: list[str] = []
    pages = 0
    over = threading.Event()
    seen: dict[str, float] = {}

    def watch() -> None:
        nonlocal pages
        choice = random.Random(1)
        while not over.is_set():
            page = cumulative(choice.choice(servers))
            fallen.extend(series for series, last in seen.items() if page.get(series, 0.0) < last)
            seen.update(page)
            pages += 1

    def generate() -> None:
        for round in range(12):
            with post(servers[1 + round % 2], 5) as client:
                client.until(b"[DONE]")

    with engine(tmp_path) as first:
        until_ready(servers)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            generate()
            leaving = servers[0]
            servers[0] = start()
            stop(leaving)
            generate()
            assert fallen == []
            first.kill()
            until(lambda: value(servers[1], "tokenwire_engine_up") == 0)
            with engine(tmp_path, epoch=2):
                until_ready(servers)
                generate()
                pages_then = pages
                until(lambda: pages > pages_then + 20, 30)
        finally:
            over.set()
            watcher.join()
    assert not [series for series in fallen if not series.startswith("vllm:")]
    tokens = [series for series in fallen if series.startswith("vllm:generation_tokens_total")]
    assert len(tokens) == 1  # once: a new engine begins anew
    assert sum(count for series, count in seen.items() if "/v1/completions'" in series) == 36


def test_health_is_each_ones_own(tmp_path: Path, start: Start) -> None:
    servers = [start() for _ in range(3)]
    with engine(tmp_path, epoch=3):
        until_ready(servers)
        with post(servers[0], ENDLESS):
            for server in servers:
                until(lambda server=server: b'"epoch":3' in server.get("/readyz").body)  # type: ignore[misc]
                until(lambda server=server: b'"running":1' in server.get("/readyz").body)  # type: ignore[misc]
    for server in servers:
        until(lambda server=server: server.get("/readyz").status == 503)  # type: ignore[misc]
        assert server.get("/livez").status == 200


def test_one_that_is_stuck_is_not_believed_for_long(tmp_path: Path, start: Start) -> None:
    servers = [start() for _ in range(2)]
    stuck = Board(servers[0].frontend.config.board_fd)
    with engine(tmp_path):
        until_ready(servers)
        until(lambda: value(servers[0], "tokenwire_engine_up") == 1)
        stuck.write(stuck.records()[0].payload)
    until(lambda: value(servers[0], "tokenwire_engine_up") == 0)
    assert value(servers[0], "vllm:num_requests_running") == 0
    stuck.close()


def test_the_queue_has_one_limit_for_all(tmp_path: Path, start: Start) -> None:
    servers = [start() for _ in range(3)]
    with engine(tmp_path, max_num_seqs=1, max_queued_requests=4), ExitStack() as stack:
        until_ready(servers)
        stack.enter_context(post(servers[0], ENDLESS))
        until(lambda: value(servers[1], "vllm:num_requests_running") == 1)
        body = b'{"prompt": [1, 2, 3], "max_tokens": 4000, "stream": true, "ignore_eos": true}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        clients = [stack.enter_context(servers[number % 3].connect()) for number in range(12)]
        for client in clients:
            client.send(head + body)
        statuses = sorted(client.until(b"\r\n\r\n").split()[1] for client in clients)
        assert statuses == [b"200"] * 4 + [b"429"] * 8
        for server in servers:
            until(lambda server=server: value(server, "vllm:num_requests_waiting") == 4)  # type: ignore[misc]
            until(lambda server=server: value(server, COUNTED, route="/v1/completions", code="429") == 8)  # type: ignore[misc]
