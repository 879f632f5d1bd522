"""The same frontends under gunicorn."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from websockets.exceptions import InvalidStatus

from tests.api_server.sockets import SocketClient

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
COMMAND = [sys.executable, "-m", "gunicorn", "-c", "python:deploy.gunicorn_conf", "api_server.asgi:app"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_gunicorn_serves_and_leaves_in_order(tmp_path: Path) -> None:
    port = free_port()
    settings = {"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", "TOKENWIRE_PORT": str(port), "TOKENWIRE_API_KEY": "k"}
    log = tmp_path / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(COMMAND, cwd=ROOT, env={**os.environ, **settings}, stderr=errors)
    try:
        assert ask(process, f"http://127.0.0.1:{port}/livez") == b'{"status":"ok"}'
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert re.search(r"Using worker: deploy\.gunicorn_worker", log.read_text())
    assert "Traceback" not in log.read_text()


def test_gunicorn_serves_websockets_and_logs_no_key(tmp_path: Path) -> None:
    port = free_port()
    settings = {"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", "TOKENWIRE_PORT": str(port), "TOKENWIRE_API_KEY": "k3y"}
    log = tmp_path / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "--log-level", "debug"], cwd=ROOT, env={**os.environ, **settings}, stderr=errors, stdout=errors
        )
    try:
        ask(process, f"http://127.0.0.1:{port}/livez")
        with pytest.raises(InvalidStatus) as caught:
            SocketClient(port, "?access_token=no")
        assert caught.value.response.status_code == 401
        with SocketClient(port, "?access_token=k3y") as client:
            client.say("{")
            assert client.hear()["error"]["code"] == "invalid_json"
            process.send_signal(signal.SIGTERM)
            assert client.closed() == 1001
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert "k3y" not in log.read_text()
    assert "access_token" not in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TOKENWIRE_SHUTDOWN_TIMEOUT", "x"),
        ("TOKENWIRE_MAX_BODY_SIZE", "x"),
        ("TOKENWIRE_ENGINE", ""),
        ("TOKENWIRE_ENGINE", "tcp://10.0.0.1:5"),
    ],
)
def test_a_bad_variable_is_one_line_that_names_it(tmp_path: Path, variable: str, text: str) -> None:
    settings = {"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", "TOKENWIRE_PORT": "0", variable: text}
    told = subprocess.run(COMMAND, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)
    assert told.returncode == 2
    assert variable in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_settings_are_those_of_our_own_command(tmp_path: Path) -> None:
    settings = {
        "TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock",
        "TOKENWIRE_HOST": "::1",
        "TOKENWIRE_PORT": "81",
        "TOKENWIRE_MAX_BODY_SIZE": "2M",
        "TOKENWIRE_DRAIN_GRACE": "200",
    }
    code = (
        "import os, deploy.gunicorn_conf as conf; from api_server.config import from_environ; "
        "print(conf.bind, conf.graceful_timeout, from_environ(os.environ).max_body_size, "
        "os.environ['TOKENIZERS_PARALLELISM'])"
    )
    environ = {name: text for name, text in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environ, **settings}, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["[::1]:81", "210", str(2 << 20), "false"]


def test_an_app_that_can_t_be_made_tells_in_one_line(tmp_path: Path) -> None:
    """Under settings of the user's own, the variables are met here first."""
    told = subprocess.run(
        [sys.executable, "-c", "import api_server.asgi"],
        cwd=ROOT,
        env={**os.environ, "TOKENWIRE_ENGINE": "x"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 3
    assert told.stderr.startswith("api_server: TOKENWIRE_ENGINE: ")
    assert len(told.stderr.splitlines()) == 1


def ask(process: "subprocess.Popen[bytes]", url: str) -> bytes:
    """The answer, as soon as there is one."""
    ends_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urlopen(url, timeout=5) as response:
                return bytes(response.read())
        except URLError:
            assert process.poll() is None
            assert time.monotonic() < ends_s
            time.sleep(0.02)
