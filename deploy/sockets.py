"""What the supervisor owns for its children: the listening socket and the private folder."""

import errno
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from protocol.channel import IPC_PATH_MAX

BACKLOG: Final = 2048
SEND_BUFFER: Final = 64 << 10  # bytes the kernel keeps for a reader that has stopped; by default it is megabytes
ENGINE_SOCKET: Final = "engine.sock"


class CannotStart(Exception):
    """The command can't do its work here. The message says what, and what to change."""


def listen(host: str, port: int, user_timeout_s: float) -> socket.socket:
    """A listening TCP socket. Connections inherit a small send buffer and are dropped when the peer has not
    acknowledged anything for `user_timeout_s`. Raises CannotStart, naming the port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotStart(f"can't listen on port {port}: host {host!r} is not known ({error.strerror})") from error
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout_s * 1000))
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            hint = "is already in use: stop what holds it, or choose another with --port"
        else:
            hint = f"can't be listened on: {error.strerror}"
        raise CannotStart(f"port {port} on {host} {hint}") from error
    return listener


@contextmanager
def run_folder(chosen: str | None, environ: Mapping[str, str]) -> Iterator[Path]:
    """A folder that nobody else may enter. A fresh one is removed at the end; a chosen one stays."""
    if chosen is not None:
        yield _own(Path(chosen))
        return
    path = _fresh(environ)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _own(path: Path) -> Path:
    """A chosen folder, made if need be and closed to others."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise CannotStart(f"--run-dir {path}: {error.strerror}") from error
    if not _fits(path):
        raise CannotStart(f"--run-dir {path}: too long, a socket's path may have {IPC_PATH_MAX} bytes at most")
    return path


def _fresh(environ: Mapping[str, str]) -> Path:
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    for parent in (runtime, tempfile.gettempdir(), "/tmp"):
        if parent and _fits(Path(parent, "tokenwire-xxxxxxxx")) and os.access(parent, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="tokenwire-", dir=parent))
    raise CannotStart("no folder for sockets: neither XDG_RUNTIME_DIR nor the temporary folder will do; use --run-dir")


def _fits(path: Path) -> bool:
    return len(os.fsencode(path / ENGINE_SOCKET)) <= IPC_PATH_MAX
