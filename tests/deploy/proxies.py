"""nginx and HAProxy as processes of a test, with the configurations that are shipped."""

import csv
import io
import re
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.e2e.server import DEADLINE_S, ROOT, free_port, until


class Proxy:
    """One in front of servers on these ports, while in the `with`."""

    program: ClassVar[str]
    shipped: ClassVar[str]
    server: ClassVar[re.Pattern[str]]  # in the access log: its port

    def __init__(self, folder: Path, *servers: int) -> None:
        self.port = free_port()
        self.folder = folder
        self.servers = servers
        self._text = (ROOT / "deploy" / self.shipped).read_text()

    @classmethod
    def installed(cls) -> bool:
        return shutil.which(cls.program) is not None

    def command(self) -> list[str]:
        """Writes the configuration, and says how to start the proxy in the foreground."""
        raise NotImplementedError

    def accesses(self) -> list[str]:
        """The log's lines about requests."""
        raise NotImplementedError

    def tried(self) -> list[list[int]]:
        """For each request the servers it was sent to, the one that answered last."""
        return [[int(port) for port in self.server.findall(line)] for line in self.accesses()]

    def replace(self, found: str, by: str) -> None:
        """In the shipped text, where it must stand once."""
        assert self._text.count(found) == 1, found
        self._text = self._text.replace(found, by)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def write_shipped(self) -> Path:
        return self.write(Path(self.shipped).name, self._text)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def __enter__(self) -> Self:
        self.folder.mkdir()
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log)
        try:
            until(self._listens)
        except BaseException:
            self.__exit__(None, None, None)
            print(self.log())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"{self.program} ended with {self.process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True


class Nginx(Proxy):
    program = "nginx"
    shipped = "nginx/tokenwire.conf"
    server = re.compile(r"(?<=127\.0\.0\.1:)\d+")

    def command(self) -> list[str]:
        line = "    server 127.0.0.1:8000 max_fails=1 fail_timeout=5s;\n"
        self.replace(line, "".join(line.replace("8000", str(port)) for port in self.servers))
        self.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        self.replace("/var/log/nginx/tokenwire.log", str(self.folder / "access.log"))
        self.replace("/var/log/nginx/tokenwire-error.log", str(self.folder / "error.log"))
        temporary = "".join(
            f"{kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = self.write(
            "nginx.conf",
            f"daemon off; master_process off; pid {self.folder}/pid; error_log stderr;\n"
            "events { worker_connections 1024; }\n"
            f"http {{\n{temporary}include {self.write_shipped()};\n}}\n",
        )
        return ["nginx", "-p", str(self.folder), "-c", str(main), "-e", "stderr"]

    def accesses(self) -> list[str]:
        return (self.folder / "access.log").read_text().splitlines()


class Haproxy(Proxy):
    program = "haproxy"
    shipped = "haproxy/tokenwire.cfg"
    server = re.compile(r"(?<= server s)\d+")

    def command(self) -> list[str]:
        self.replace("bind :80", f"bind 127.0.0.1:{self.port}")
        self.replace(
            "    server first 127.0.0.1:8000\n",
            "".join(f"    server s{port} 127.0.0.1:{port}\n" for port in self.servers),
        )
        self._control = free_port()
        main = self.write(
            "global.cfg",
            f"global\n    stats socket ipv4@127.0.0.1:{self._control}\n    log stdout format raw local0\n",
        )
        return ["haproxy", "-db", "-f", str(main), "-f", str(self.write_shipped())]

    def accesses(self) -> list[str]:
        return [line for line in self.log().splitlines() if " server s" in line]

    def up(self, server: int) -> bool:
        """Whether it gets requests."""
        with socket.create_connection(("127.0.0.1", self._control), DEADLINE_S) as control:
            control.sendall(b"show stat\n")
            with control.makefile() as answer:
                rows = list(csv.DictReader(io.StringIO(answer.read().lstrip("# "))))
        (status,) = [row["status"] for row in rows if row["svname"] == f"s{server}"]
        return status.startswith("UP")


PROXIES: tuple[type[Proxy], ...] = (Nginx, Haproxy)
