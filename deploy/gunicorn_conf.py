"""Settings for `gunicorn -c python:deploy.gunicorn_conf api_server.asgi:app`: the same frontends under gunicorn.

The engine is started apart (`tokenwire engine --listen ENDPOINT`) and named by TOKENWIRE_ENGINE; every other setting of
a frontend is a TOKENWIRE_* variable as well. The time limits are ordered: a worker's own drain ends first, then
gunicorn's patience, then its watchdog.
"""

import os
import socket
from typing import Any

_drain_s = float(os.environ.get("TOKENWIRE_SHUTDOWN_TIMEOUT") or 120)
_stall_s = float(os.environ.get("TOKENWIRE_STALL_TIMEOUT") or 60)

bind = "{}:{}".format(os.environ.get("TOKENWIRE_HOST") or "127.0.0.1", os.environ.get("TOKENWIRE_PORT") or 8000)
workers = int(os.environ.get("TOKENWIRE_API_WORKERS") or 1)
worker_class = "deploy.gunicorn_worker.FrontendWorker"
graceful_timeout = int(_drain_s) + 10
timeout = graceful_timeout + 60
keepalive = 75
preload_app = False  # ZeroMQ contexts don't survive a fork
max_requests = 0  # recycling would cut streams
control_socket_disable = True  # its path is shared between instances


def when_ready(server: Any) -> None:
    """Bounds what the kernel keeps for readers that have stopped, as the supervisor does."""
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        if listener.sock.family in (socket.AF_INET, socket.AF_INET6):
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_stall_s * 1000))
