"""Four frontends on one port, as processes: connections are shared, metrics are those of all, whoever dies."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.api_server.live import BareClient
from tests.e2e.server import Server, descendants, sockets_of, until

WORKERS = 4
COUNTED = "tokenwire_http_requests_total"
ENDLESS = {"prompt": "x", "max_tokens": 2000, "n": 8, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def wide() -> Iterator[Server]:
    with Server("--api-workers", str(WORKERS)) as running:
        yield running


def frontends(server: Server) -> set[int]:
    return {pid for pid, command in descendants(server.process.pid).items() if "-m api_server" in command}


def connections(server: Server) -> dict[int, int]:
    """How many of the port's established connections each frontend has."""
    port = f":{server.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(port) and line[3] == "01"}
    return {pid: len(sockets_of(pid) & established) for pid in frontends(server)}


def ask(clients: list[BareClient], path: str) -> list[str]:
    """All of them before the first answer is read."""
    for client in clients:
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return [client.answer().body.decode() for client in clients]


@contextmanager
def connected(server: Server, count: int) -> Iterator[list[BareClient]]:
    """So many connections at once, so that each frontend has some."""
    with ExitStack() as stack:
        yield [stack.enter_context(BareClient(server.port)) for _ in range(count)]


def all_say(server: Server, line: str) -> bool:
    """Whichever frontend is asked."""
    with connected(server, 4 * WORKERS) as clients:
        return all(f"\n{line}\n" in page for page in ask(clients, "/metrics"))


def completions(server: Server) -> int:
    return int(server.metric(COUNTED, route="/v1/completions", code="200"))


def test_a_burst_of_connections_is_spread(wide: Server) -> None:
    with connected(wide, 64) as clients:
        ask(clients, "/livez")
        found = connections(wide)
        assert len(found) == WORKERS
        assert sum(found.values()) == 64
        assert max(found.values()) <= 2 * 64 / WORKERS, found
        until(lambda: wide.metric(COUNTED, route="/livez", code="200") == 64)
        pages = ask(clients, "/metrics")
        assert all(page.count(COUNTED + '{route="/livez",code="200"} 64\n') == 1 for page in pages)
        assert all(page.count("\nvllm:prompt_tokens_total{") == 1 for page in pages)


def test_what_a_killed_frontend_counted_stays_and_what_it_ran_does_not(wide: Server) -> None:
    before = completions(wide)
    streams = [wide.post("/v1/completions", ENDLESS) for _ in range(4)]
    for stream in streams:
        next(stream.data())
    until(lambda: completions(wide) == before + 4)
    until(lambda: wide.metric("tokenwire_streams") == 4)
    serving = connections(wide)
    for pid in serving:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(frontends(wide)) == WORKERS and not frontends(wide) & serving.keys(), 60)
    until(wide._is_ready, 60)
    until(lambda: wide.metric("tokenwire_streams") == 0)
    assert all_say(wide, f'{COUNTED}{{route="/v1/completions",code="200"}} {before + 4}')
    until(lambda: wide.metric("tokenwire_aborts_total") >= 4)
    assert wide.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200
    until(lambda: completions(wide) == before + 5)


def test_an_engine_that_is_lost_takes_no_counts_of_frontends_with_it(wide: Server) -> None:
    before = completions(wide)
    assert wide.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200
    until(lambda: completions(wide) == before + 1)
    os.kill(wide.pid_of("engine_core"), signal.SIGKILL)
    assert completions(wide) == before + 1
    until(lambda: all_say(wide, 'tokenwire_engine_restarts_total{engine="0"} 1'), 60)
    until(lambda: all_say(wide, 'tokenwire_engine_epoch{engine="0"} 2.0'))
    until(lambda: all_say(wide, 'tokenwire_engine_up{engine="0"} 1.0'))
    assert all_say(wide, f'{COUNTED}{{route="/v1/completions",code="200"}} {before + 1}')
