"""The two ends of the wire, and the only file that knows ZeroMQ.

The engine binds one ROUTER, every frontend connects one DEALER. Sends never block and are never lost in silence:
`ROUTER_MANDATORY` and a finite high-water mark turn "peer is gone" and "peer is slow" into return values, and the token
log behind the engine's end makes a slow peer cost nothing but a position. A socket's identity is random and used once,
since a ROUTER is silently mute to the second peer of one name.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import zmq
import zmq.utils.monitor

from protocol.codec import BadMessage, decode_command, decode_event, encode
from protocol.messages import Command, Event

ENGINE_MAX_BYTES: Final = 16 << 20  # a command: prompts of a whole request
CLIENT_MAX_BYTES: Final = 64 << 20  # an event: a Welcome may carry a 30 MB tokenizer
ENGINE_HIGH_WATER: Final = 256  # steps a frontend may be behind before its tokens wait in the log
CLIENT_HIGH_WATER: Final = 1024  # commands that may wait for an engine in a long step
RECEIVE_BATCH: Final = 1024  # frames, and bytes, taken before the engine turns to its next step
RECEIVE_BYTES: Final = 1 << 20
LINGER_MS: Final = 1000
IPC_PATH_MAX: Final = 107  # sun_path, less the final NUL


class EndpointInUse(OSError):
    """Another engine holds this endpoint."""


class TooLarge(ValueError):
    """The message is larger than the other end would take."""


class BadEndpoint(ValueError):
    """The endpoint can't be used as it is written."""


class Sent(Enum):
    """What became of a message handed to a peer."""

    YES = 0
    FULL = 1  # try again at the next step
    GONE = 2  # no such peer any more


class Link(Enum):
    """The state of a frontend's connection, told once per change."""

    UP = 0
    DOWN = 1


def check_endpoint(endpoint: str, *, insecure_tcp: bool = False) -> str:
    """The endpoint itself, or BadEndpoint with what to change."""
    scheme, _, rest = endpoint.partition("://")
    if scheme == "ipc" and rest:
        if len(os.fsencode(rest)) > IPC_PATH_MAX:
            raise BadEndpoint(f"{endpoint}: an ipc path may have {IPC_PATH_MAX} bytes at most")
        return endpoint
    if scheme == "tcp" and (host := _host_and_port(endpoint)):
        if not insecure_tcp:
            raise BadEndpoint(
                f"{endpoint}: tcp:// is neither encrypted nor authenticated; use ipc://, or --insecure-tcp on loopback"
            )
        if host != "localhost" and not host.startswith("127.") and host != "::1":
            raise BadEndpoint(f"{endpoint}: --insecure-tcp is for loopback addresses only")
        return endpoint
    raise BadEndpoint(f"{endpoint}: expected ipc://PATH or tcp://HOST:PORT")


def _host_and_port(endpoint: str) -> str:
    """The host of a tcp endpoint that names a port, or nothing."""
    try:
        parts = urlsplit(endpoint)
        return (parts.hostname or "") if parts.port else ""
    except ValueError:  # a port beyond 65535
        return ""


class EngineChannel:
    """The engine's end: one ROUTER for any number of frontends. Owned by one thread."""

    def __init__(self, endpoint: str) -> None:
        """Raises EndpointInUse, or another OSError where the endpoint can't be made."""
        self.endpoint = endpoint
        self.dropped = 0  # frames that were no command
        self._lock = _lock_path(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        _bound(self._socket, ENGINE_HIGH_WATER, ENGINE_MAX_BYTES)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            kind = EndpointInUse if error.errno == errno.EADDRINUSE else OSError
            raise kind(error.errno, error.strerror, endpoint) from error

    def receive(self, timeout_s: float) -> list[tuple[bytes, Command]]:
        """(peer, command) pairs that have come in, waiting at most `timeout_s` for the first. Frames that are no
        command are counted and dropped. Long prompts that come together don't keep the next step waiting together."""
        commands: list[tuple[bytes, Command]] = []
        size = 0
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLIN):
            return commands
        for _ in range(RECEIVE_BATCH):
            if size >= RECEIVE_BYTES:
                break
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            size += sum(map(len, frames))
            if len(frames) != 2:
                self.dropped += 1
                continue
            try:
                commands.append((frames[0], decode_command(frames[1])))
            except BadMessage:
                self.dropped += 1
        return commands

    def send(self, peer: bytes, event: Event) -> Sent:
        """Hands the event to the peer's queue, or says why not. Never blocks. Raises TooLarge for one that would cost
        the peer its connection."""
        frame = encode(event)
        if len(frame) > CLIENT_MAX_BYTES:
            raise TooLarge(f"a {type(event).__name__} of {len(frame)} bytes, at most {CLIENT_MAX_BYTES}")
        try:
            self._socket.send_multipart((peer, frame), zmq.DONTWAIT)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return Sent.GONE
        return Sent.YES

    def close(self) -> None:
        self._socket.close(linger=LINGER_MS)  # last words may still go out
        self._context.term()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ClientChannel:
    """A frontend's end: one DEALER to one engine. Knows no event loop: its owner watches `filenos` and takes all that
    `receive` yields, after every readiness and after every send, because ZeroMQ's descriptors are edge-triggered."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.dropped = 0
        self._context = zmq.Context()
        self._open()

    def _open(self) -> None:
        self.boot = secrets.token_bytes(16)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"\x01" + self.boot[1:])  # a leading zero is ZeroMQ's own
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # never queue for an engine that is not there
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        _bound(self._socket, CLIENT_HIGH_WATER, CLIENT_MAX_BYTES)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._socket.connect(self.endpoint)

    def reopen(self) -> None:
        """A new socket under a new identity; the descriptors change. For a peer that went away or fell silent."""
        self._close_sockets()
        self._open()

    def filenos(self) -> tuple[int, int]:
        """Descriptors of the messages and of the link's changes."""
        return self._socket.fileno(), self._monitor.fileno()

    def send(self, command: Command) -> bool:
        """False if no engine is connected or its queue is full: nothing was sent. Never blocks. Raises TooLarge for one
        that would cost the connection."""
        frame = encode(command)
        if len(frame) > ENGINE_MAX_BYTES:
            raise TooLarge(f"a {type(command).__name__} of {len(frame)} bytes, at most {ENGINE_MAX_BYTES}")
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Iterator[Event | Link]:
        """Everything that is there. The link's changes come last, so that an engine's last words are heard before its
        end. Frames that are no event are counted and dropped."""
        changes = []
        while self._monitor.poll(0):
            changes.append(zmq.utils.monitor.recv_monitor_message(self._monitor)["event"])
        with suppress(zmq.Again):
            while True:
                frame = self._socket.recv(zmq.DONTWAIT)
                try:
                    yield decode_event(frame)
                except BadMessage:
                    self.dropped += 1
        for change in changes:
            yield Link.UP if change == zmq.EVENT_HANDSHAKE_SUCCEEDED else Link.DOWN

    def close(self) -> None:
        self._close_sockets()
        self._context.term()

    def _close_sockets(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)


def _bound(socket: zmq.Socket[bytes], high_water: int, max_bytes: int) -> None:
    """Every queue and every message has an end."""
    socket.setsockopt(zmq.SNDHWM, high_water)
    socket.setsockopt(zmq.RCVHWM, high_water)
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    socket.setsockopt(zmq.LINGER, 0)


def _lock_path(endpoint: str) -> int | None:
    """Holds PATH.lock of an ipc endpoint for life: a second bind on one path succeeds silently and splits the frontends
    between two engines. Makes the folder, closed to other users."""
    if not endpoint.startswith("ipc://"):
        return None
    path = Path(endpoint.removeprefix("ipc://"))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise EndpointInUse(error.errno, "another engine holds it", endpoint) from error
    return lock
