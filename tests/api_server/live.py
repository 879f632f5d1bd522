"""A real frontend server on a real port, in a thread, and a bare client: nothing buffers, nothing is polite."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import uvloop
from starlette.requests import Request

from api_server.app import create_app
from api_server.config import Config
from api_server.frontend import Frontend
from api_server.routes import HEALTH, Endpoint
from api_server.server import FrontendServer, make_server
from protocol.listener import bound

DEADLINE_S = 10.0
NOWHERE = "ipc:///tmp/tokenwire-no-such-engine.sock"
Handler = Callable[[Request], Awaitable[Any]]


class LiveServer:
    """Serves `endpoints` beside the health routes while in the `with`."""

    def __init__(
        self, endpoints: Sequence[Endpoint] = (), *, listener: socket.socket | None = None, **settings: Any
    ) -> None:
        """`listener` is one that others listen on, too."""
        config = Config(**{"engine": NOWHERE, **settings})
        self.app = create_app(config, endpoints=(*HEALTH, *endpoints))
        self.frontend: Frontend = self.app.state.frontend
        self._listener = socket.create_server(("127.0.0.1", 0)) if listener is None else listener.dup()
        bound(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self.server: FrontendServer | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-server")

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.server = make_server(self.app)
            self._started.set()
            await self.server.serve([self._listener])

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(DEADLINE_S)
        until(lambda: self.server is not None and self.server.started)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.stop()
        self.join()

    def stop(self) -> None:
        """A signal's effect; the second one means now."""
        assert self.server is not None
        self.call(self.server.stop)

    def retire(self) -> None:
        """The effect of the supervisor's signal in a roll."""
        assert self.server is not None
        self.call(self.server.retire)

    def call(self, function: Callable[[], object]) -> None:
        """In the server's loop, if it has not ended already."""
        assert self.loop is not None
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function)

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def connect(self) -> "BareClient":
        return BareClient(self.port)

    def get(self, target: str, headers: str = "") -> "Answer":
        return self.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())

    def post(self, target: str, body: bytes, headers: str = "") -> "Answer":
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        return self.ask(head.encode() + body)

    def ask(self, request: bytes) -> "Answer":
        with self.connect() as client:
            client.send(request)
            return client.answer()


class Answer:
    """One response, as it was on the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
        self.body = body


class BareClient:
    """A socket that speaks what it is told."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE_S)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.seen = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`; what comes behind is kept."""
        while mark not in self.seen:
            data = self.socket.recv(65_536)
            assert data, f"the connection ended before {mark!r}, after {self.seen!r}"
            self.seen += data
        found, _, self.seen = self.seen.partition(mark)
        return found + mark

    def rest(self) -> bytes:
        """Everything until the connection ends."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(65_536):
                self.seen += data
        rest, self.seen = self.seen, b""
        return rest

    def answer(self) -> Answer:
        """The next response, chunks joined."""
        head = self.until(b"\r\n\r\n")[:-4]
        found = Answer(head, b"")
        if found.headers.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n"), 16):
                found.body += self.exactly(size)
                self.exactly(2)
            self.exactly(2)
        elif "content-length" in found.headers:
            found.body = self.exactly(int(found.headers["content-length"]))
        else:
            found.body = self.rest()
        return found

    def exactly(self, size: int) -> bytes:
        while len(self.seen) < size:
            data = self.socket.recv(65_536)
            assert data, "the connection ended inside a body"
            self.seen += data
        found, self.seen = self.seen[:size], self.seen[size:]
        return found

    @property
    def ended(self) -> bool:
        """The server has closed the connection; what it sent before is dropped."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65_536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.socket.settimeout(DEADLINE_S)
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def endpoint(path: str, handler: Handler, *methods: str) -> Endpoint:
    return Endpoint(path, methods or ("GET", "POST"), handler, path)


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Returns when the condition holds; fails at the deadline."""
    ends_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_s, "the condition never came true"
        time.sleep(0.005)
