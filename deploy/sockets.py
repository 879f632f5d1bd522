"""What the supervisor owns for its children: the listening socket, the memory that frontends share, and the private
folder."""

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from protocol.channel import IPC_PATH_MAX
from protocol.listener import bound

BACKLOG: Final = 2048
ENGINE_SOCKET: Final = "engine.sock"
FRESH: Final = "tokenwire-"
NAME: Final = re.compile(FRESH + r"[a-z0-9_]{8}")  # as mkdtemp makes them
UNUSED_S: Final = 60.0  # a younger folder without an engine may be one that is just being made


class CannotStart(Exception):
    """The command can't do its work here. The message says what, and what to change."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket whose connections are bounded. Raises CannotStart, naming the port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotStart(f"can't listen on port {port}: host {host!r} is not known ({error.strerror})") from error
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound(listener)
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
def board() -> Iterator[int]:
    """A descriptor of memory that the frontends of one address share (`api_server.board`). It is as empty as a new
    file, and gone with the last process that has it."""
    descriptor = os.memfd_create("tokenwire-board", os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def run_folder(chosen: str | None, environ: Mapping[str, str]) -> Iterator[Path]:
    """A folder that nobody else may enter. A fresh one is removed at the end; a chosen one stays."""
    if chosen is not None:
        yield _own(Path(chosen))
        return
    parent = _parent(environ)
    for left in parent.glob(FRESH + "*"):
        if _ownerless(left):
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=FRESH, dir=parent))
    try:
        with _held(path, fcntl.LOCK_EX):
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


def _parent(environ: Mapping[str, str]) -> Path:
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    for parent in (runtime, tempfile.gettempdir(), "/tmp"):
        if parent and _fits(Path(parent, FRESH + "xxxxxxxx")) and os.access(parent, os.W_OK | os.X_OK):
            return Path(parent)
    raise CannotStart("no folder for sockets: neither XDG_RUNTIME_DIR nor the temporary folder will do; use --run-dir")


def _fits(path: Path) -> bool:
    return len(os.fsencode(path / ENGINE_SOCKET)) <= IPC_PATH_MAX


# ---------------------------------------------------------------------------------------------------- what was left


def _ownerless(path: Path) -> bool:
    """A fresh folder of ours whose supervisor was killed, and whose engine has ended as well."""
    try:
        found = path.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
        if not ours or not NAME.fullmatch(path.name):
            return False
        lock = path / f"{ENGINE_SOCKET}.lock"
        begun = lock.exists()  # its supervisor holds a folder before it starts anything there
        at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
        with _held(path, at_once), _held(lock, at_once) if begun else nullcontext():
            return begun or time.time() - found.st_mtime > UNUSED_S
    except OSError:  # held, or gone meanwhile
        return False


@contextmanager
def _held(path: Path, how: int) -> Iterator[None]:
    """The path's flock, which a killed process gives up as well. Raises OSError if it can't be had."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
