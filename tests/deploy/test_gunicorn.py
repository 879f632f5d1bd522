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

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_gunicorn_serves_and_leaves_in_order(tmp_path: Path) -> None:
    port = free_port()
    settings = {"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", "TOKENWIRE_PORT": str(port), "TOKENWIRE_API_KEY": "k"}
    command = [sys.executable, "-m", "gunicorn", "-c", "python:deploy.gunicorn_conf", "api_server.asgi:app"]
    log = tmp_path / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, stderr=errors)
    try:
        assert ask(process, f"http://127.0.0.1:{port}/livez") == b'{"status":"ok"}'
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert re.search(r"Using worker: deploy\.gunicorn_worker", log.read_text())
    assert "Traceback" not in log.read_text()


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
