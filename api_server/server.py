"""uvicorn, told to serve this app within bounds, and to leave in good order.

The first SIGTERM or SIGINT starts the drain: the listener goes on accepting, so that what is new is told 503 and not
refused, and running requests finish. After the time limit, or at the second signal, what still runs ends with an error.
A frontend that serves health alone has nothing to finish: it tells of an engine's drain until it is ended itself.
"""

import asyncio
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import uvicorn
from starlette.applications import Starlette

from api_server.bounds import BoundedHttp
from api_server.config import Config
from api_server.descriptors import make_room
from api_server.frontend import Frontend
from api_server.stall import Watch, Watched
from api_server.websocket import MESSAGE_FACTOR, BoundedSocket
from protocol.listener import bound

KEEP_ALIVE_S: Final = 75  # above the idle limits of common load balancers, or they meet connections just being closed
FAREWELL_S: Final = 2.0  # for error events and buffers to go out at the end
ENGINE_END_S: Final = 10.0  # what an engine may take to end after its own drain
COULD_NOT_START: Final = 3
SWITCH_S: Final = (
    0.0005  # how long a thread with a long prompt may keep the loop waiting for the interpreter, each time
)
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def make_server(app: Starlette, **more: Any) -> "FrontendServer":
    """The server of an app that `create_app` made; `more` is uvicorn's, for whoever runs the process."""
    frontend: Frontend = app.state.frontend
    return FrontendServer(uvicorn.Config(app, **(_uvicorn_settings(frontend.config) | more)), frontend)


def _uvicorn_settings(config: Config) -> dict[str, Any]:
    return {
        "host": config.host,
        "port": config.port,
        "loop": "uvloop",
        "http": cast(type[asyncio.Protocol], functools.partial(BoundedHttp, config, make_room())),
        "ws": "none" if config.health_only else cast(type[asyncio.Protocol], functools.partial(BoundedSocket, config)),
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

    def __init__(self, config: uvicorn.Config, frontend: Frontend) -> None:
        super().__init__(config)
        self._frontend = frontend
        self._now = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None
        connections = cast(set[Watched], self.server_state.connections)
        self._watch = Watch(connections, frontend.config.stall_timeout_s)

    def stop(self) -> None:
        """What a signal does: the first one drains, the second ends the drain."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._now.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
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

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    async def _drain(self) -> None:
        config = self._frontend.config
        self._frontend.drain.begin()
        ends: list[asyncio.Task[Any]] = [asyncio.create_task(self._now.wait())]
        limit_s = max(config.shutdown_timeout_s, config.drain_grace_s)
        if config.health_only:
            limit_s += ENGINE_END_S
        else:
            ends.append(asyncio.create_task(self._finished(config.drain_grace_s)))
        await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        running = set(self.server_state.tasks)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=FAREWELL_S)
        self.should_exit = True

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
