"""Several workers under gunicorn, before a real engine core on a made-up device: one set of metrics, and a reload."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.api_server.live import BareClient, until
from tests.api_server.scraping import LONG
from tests.e2e.server import descendants, free_port, sockets_of
from tests.fakes import MadeUpDevice, MadeUpEngine

ROOT = Path(__file__).parents[2]
WORKERS = 3
PATIENCE_S = 40.0
STREAM = b'{"prompt": [97, 98, 99], "max_tokens": 30000, "ignore_eos": true, "stream": true}'


class Gunicorn:
    """The arbiter, which is asked on its port; whichever worker answers."""

    def __init__(self, path: Path) -> None:
        self.port = free_port()
        settings = {
            "TOKENWIRE_ENGINE": f"ipc://{path}/e.sock",
            "TOKENWIRE_PORT": str(self.port),
            "TOKENWIRE_API_WORKERS": str(WORKERS),
            "TOKENWIRE_SHUTDOWN_TIMEOUT": "60",
        }
        command = [sys.executable, "-m", "gunicorn", "-c", "python:deploy.gunicorn_conf", "api_server.asgi:app"]
        self.log = path / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=log)

    @property
    def workers(self) -> set[int]:
        return set(descendants(self.process.pid))

    def statuses(self, count: int, path: str) -> list[bytes]:
        """Of as many connections at once."""
        with ExitStack() as stack:
            clients = [stack.enter_context(BareClient(self.port)) for _ in range(count)]
            for client in clients:
                client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return [client.until(b"\r\n\r\n").split()[1] for client in clients]

    def all_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.statuses(4 * WORKERS, "/readyz") == [b"200"] * 4 * WORKERS
        except OSError:
            return False

    def page(self) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def value(self, series: str) -> float:
        [line] = [line for line in self.page().splitlines() if line.startswith(series + " ")]
        return float(line.rpartition(" ")[2])


Running = tuple[Gunicorn, MadeUpEngine]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    endpoint = f"ipc://{tmp_path}/e.sock"
    with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.01), card=LONG, num_blocks=4001) as engine:
        gunicorn = Gunicorn(tmp_path)
        try:
            until(gunicorn.all_ready, PATIENCE_S)
            yield gunicorn, engine
            gunicorn.process.send_signal(signal.SIGTERM)
            assert gunicorn.process.wait(PATIENCE_S) == 0
            assert "Traceback" not in gunicorn.log.read_text()
        finally:
            for pid in [*gunicorn.workers, gunicorn.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            gunicorn.process.wait()


@contextmanager
def stream(gunicorn: Gunicorn) -> Iterator[BareClient]:
    with BareClient(gunicorn.port) as client:
        client.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(STREAM) + STREAM)
        assert client.until(b"\r\n\r\n").split()[1] == b"200"
        yield client


def test_any_worker_tells_of_all_and_of_those_that_were_killed(running: Running) -> None:
    gunicorn, _ = running
    models = 'tokenwire_http_requests_total{route="/v1/models",code="200"}'
    assert gunicorn.statuses(30, "/v1/models") == [b"200"] * 30
    until(lambda: gunicorn.value(models) == 30)
    with stream(gunicorn), stream(gunicorn):
        until(lambda: gunicorn.value("tokenwire_streams") == 2)
        labels = '{model_name="made-up",engine="0"}'
        until(lambda: gunicorn.value("vllm:prompt_tokens_total" + labels) == 6)
        killed = gunicorn.workers
        assert len(killed) == WORKERS
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(gunicorn.workers) == WORKERS and not gunicorn.workers & killed, PATIENCE_S)
    until(gunicorn.all_ready, PATIENCE_S)
    assert gunicorn.value(models) == 30
    assert gunicorn.value("tokenwire_streams") == 0
    assert gunicorn.value("vllm:prompt_tokens_total" + labels) == 6


def test_a_reload_cuts_nothing_and_the_old_take_no_more(running: Running) -> None:
    gunicorn, engine = running
    old = gunicorn.workers
    shared = set.intersection(*map(sockets_of, old | {gunicorn.process.pid}))
    assert len(shared) == 1  # the listener
    with stream(gunicorn) as client:
        gunicorn.process.send_signal(signal.SIGHUP)
        until(lambda: not any(shared & sockets_of(pid) for pid in old), PATIENCE_S)
        until(gunicorn.all_ready, PATIENCE_S)
        assert gunicorn.statuses(30, "/v1/models") == [b"200"] * 30
        assert len(engine.scheduler.running) == 1
        for _ in range(engine.device.steps + 5):  # so many tokens are not made yet
            assert b'"error"' not in client.until(b"\n\n")
    until(lambda: not gunicorn.workers & old, PATIENCE_S)
