"""`tokenwire serve` as a user starts it, and plain HTTP to talk to it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0
DEADLINE_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    """Polls; fails at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Running, that is, neither gone nor a zombie that its new parent has not reaped yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        for child in [child for child, of in parents.items() if of == parent]:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            todo.append(child)
    return found


def sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets; none if it has ended."""
    found = set()
    with suppress(FileNotFoundError):
        for descriptor in list(Path(f"/proc/{pid}/fd").iterdir()):
            with suppress(FileNotFoundError):  # closed meanwhile
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    found.add(target)
    return found


class Answer:
    """A response: read whole at once if it has a length, else a stream that is read as it comes."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        self.status = self._response.status
        self.headers = self._response.headers
        self._body: bytes | None = None
        if "Content-Length" in self.headers or self.status == 204:
            self._body = self._response.read()
            self.close()

    def lines(self) -> Iterator[str]:
        while line := self._response.readline():
            yield line.decode().rstrip("\n")
        self.close()

    def data(self) -> Iterator[str]:
        """What stands behind `data: `, event by event."""
        for line in self.lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")

    def events(self) -> list[dict[str, Any]]:
        """All events of a stream that ends with [DONE]."""
        assert self._body is None, self._body
        *events, last = self.data()
        assert last == "[DONE]", last
        return [json.loads(event) for event in events]

    def json(self) -> Any:
        return json.loads(self.text())

    def text(self) -> str:
        assert self._body is not None
        return self._body.decode()

    def close(self) -> None:
        """The client goes away, in the middle or not."""
        self._response.close()
        self._connection.close()


class Server:
    """Started in `with`, ready inside it, and gone with all of its processes behind it."""

    command = "serve"

    def __init__(self, *options: str, env: Mapping[str, str] | None = None, ready: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
        self._ready = ready
        self._answers: list[Answer] = []
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the server)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "deploy.cli", self.command, *self._options, "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, env=self._env, stdout=self._log, stderr=self._log)
        if self._ready:
            try:
                until(self._is_ready, START_S)
            except BaseException:
                print(self.log())
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for answer in self._answers:
            answer.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(DEADLINE_S)
                raise
        self._log.close()

    def log(self) -> str:
        """Everything that the server and its processes have written."""
        self._log.seek(0)
        return self._log.read()

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, dict(headers or {}))
        answer = Answer(connection)
        self._answers.append(answer)
        return answer

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        return self.request("POST", path, json.dumps(body).encode(), headers)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of this name with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total, found = 0.0, False
        for line in self.get("/metrics").text().splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(label in series for label in wanted):
                total, found = total + float(value), True
        assert found, name
        return total

    def engine(self) -> dict[str, Any]:
        """The engine's part of /readyz."""
        state: dict[str, Any] = self.get("/readyz").json()["engine"]
        return state

    def pid_of(self, module: str) -> int:
        [pid] = [pid for pid, command in descendants(self.process.pid).items() if f"-m {module}" in command]
        return pid


class Frontends(Server):
    """`tokenwire api`: the same without an engine."""

    command = "api"
