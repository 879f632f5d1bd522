"""uvicorn, told to serve this app within bounds, and to leave in good order.

The first SIGTERM or SIGINT starts the drain: the listener goes on accepting, so that what is new is told 503 and not
refused, and running requests finish. After the time limit, or at the second signal, what still runs ends with an error.
A frontend that serves health alone has nothing to finish: it tells of an engine's drain until it is ended itself.

A frontend that is told to retire, because another one serves in its place, refuses nothing: it accepts no more
connections, gives those that it has to its successor as soon as they are at rest, and ends when it has none left.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import uvicorn
from starlette.applications import Starlette

from api_server.acceptor import Acceptor
from api_server.descriptors import make_room
from api_server.frontend import Frontend
from api_server.handover import Handover, MovableHttp
from api_server.stall import Watch, Watched
from api_server.websocket import MESSAGE_FACTOR, BoundedSocket
from protocol.handover import RETIRE
from protocol.listener import bound

KEEP_ALIVE_S: Final = 75  # above the idle limits of common load balancers, or they meet connections just being closed
FAREWELL_S: Final = 2.0  # for error events and buffers to go out at the end
SWEEP_S: Final = 0.05  # how often a retiring frontend looks for connections at rest
ENGINE_END_S: Final = 10.0  # what an engine may take to end after its own drain
COULD_NOT_START: Final = 3
SWITCH_S: Final = (
    0.0005  # how long a thread with a long prompt may keep the loop waiting for the interpreter, each time
)
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def make_server(app: Starlette, *, leaves: bool = False, **more: Any) -> "FrontendServer":
    """The server of an app that `create_app` made. With `leaves` a drain gives up the listener at once, because others
    are there for what is new, or nobody is to be. `more` is uvicorn's, for whoever runs the process."""
    frontend: Frontend = app.state.frontend
    return FrontendServer(uvicorn.Config(app, **(_uvicorn_settings(frontend) | more)), frontend, leaves=leaves)


def _uvicorn_settings(frontend: Frontend) -> dict[str, Any]:
    config, answers = frontend.config, frontend.answers
    socket_protocol = functools.partial(BoundedSocket, config, answers)
    return {
        "host": config.host,
        "port": config.port,
        "loop": "uvloop",
        "http": cast(type[asyncio.Protocol], functools.partial(MovableHttp, config, answers, make_room())),
        "ws": "none" if config.health_only else cast(type[asyncio.Protocol], socket_protocol),
        "ws_max_size": MESSAGE_FACTOR * config.max_body_size,
        "ws_ping_interval": config.keepalive_interval_s,
        "ws_ping_timeout": config.stall_timeout_s,
        "ws_per_message_deflate": False,  # for messages of a token it costs more than it saves
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "log_config": None,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "timeout_graceful_shutdown": int(FAREWELL_S),
    }


class FrontendServer(uvicorn.Server):
    """uvicorn.Server with a drain of its own and without uvicorn's signal handlers."""

    def __init__(self, config: uvicorn.Config, frontend: Frontend, *, leaves: bool = False) -> None:
        super().__init__(config)
        self._frontend = frontend
        self._leaves = leaves
        self._listeners: list[socket.socket] = []
        self._now = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        connections = cast(set[Watched], self.server_state.connections)
        self._watch = Watch(connections, frontend.config.stall_timeout_s)
        self._retiring: asyncio.Task[None] | None = None
        give_fd, take_fd = frontend.config.give_fd, frontend.config.take_fd
        self._handover = Handover(give_fd, take_fd) if give_fd is not None and take_fd is not None else None

    def retire(self) -> None:
        """Another frontend serves in this one's place: ends once nothing needs it any more."""
        if self._handover is not None and self.started and self._draining is None and self._retiring is None:
            self._retiring = asyncio.create_task(self._retire(self._handover))

    def stop(self) -> None:
        """What a signal does: the first one drains, the second ends the drain."""
        if self._retiring is not None:
            self._retiring.cancel()
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._now.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._listeners = sockets or []
        self.servers = [cast(asyncio.Server, self._acceptor(listener)) for listener in self._listeners]
        if self._handover is not None:
            self._handover.start_taking(self._make_protocol)
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # what is there now stays: collections need not look at it again
        if (descriptor := self._frontend.config.ready_fd) is not None:
            os.write(descriptor, b"1")
            os.close(descriptor)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        self._watch.tick(time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._handover is not None:
            self._handover.close()

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        return Acceptor(
            listener, self._make_protocol, lambda: len(self.server_state.connections), self._frontend.ledger.board
        )

    def _make_protocol(self) -> MovableHttp:
        """Of a connection, whether it is new or another frontend had it; made as uvicorn does."""
        make = cast(Callable[..., MovableHttp], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        if self._handover is not None:
            loop.add_signal_handler(RETIRE, self.retire)
        try:
            yield
        finally:
            for number in (*SIGNALS, RETIRE):
                loop.remove_signal_handler(number)

    async def _drain(self) -> None:
        config = self._frontend.config
        self._frontend.drain.begin()
        if self._leaves:
            self._leave()
        ends: list[asyncio.Task[Any]] = [asyncio.create_task(self._now.wait())]
        limit_s = max(config.shutdown_timeout_s, config.drain_grace_s)
        if config.health_only:
            limit_s += ENGINE_END_S
        else:
            ends.append(asyncio.create_task(self._finished(config.drain_grace_s)))
        await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await self._end()

    async def _retire(self, handover: Handover) -> None:
        self._frontend.drain.retire()
        handover.stop_taking()
        for server in self.servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._frontend.config.shutdown_timeout_s):
                await asyncio.sleep(SWEEP_S)  # what was accepted last is a connection by then
                while self.server_state.connections or handover.arriving:
                    handover.move(self.server_state.connections)
                    await asyncio.sleep(SWEEP_S)
        await self._end()

    async def _end(self) -> None:
        """What still runs is told that it is over."""
        running = set(self.server_state.tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=FAREWELL_S)
        self.should_exit = True

    def _leave(self) -> None:
        for server in self.servers:
            server.close()
        for listener in self._listeners:
            listener.close()

    async def _finished(self, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        await self._frontend.drain.wait_idle()


def serve(app: Starlette, listen_fd: int | None) -> None:
    """Runs until a signal ends it, on an inherited socket if there is one. Exits with 3 if the address can't be had."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is the supervisor's
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # below it tells nothing that we don't
    config = app.state.frontend.config
    listener = _listener(config.host, config.port) if listen_fd is None else socket.socket(fileno=listen_fd)
    make_server(app).run([listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        print(f"api_server: can't listen on port {port}: {error.strerror}", file=sys.stderr)
        sys.exit(COULD_NOT_START)
    bound(listener)
    return listener
