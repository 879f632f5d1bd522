"""Settings for `gunicorn -c python:deploy.gunicorn_conf api_server.asgi:app`: the same frontends under gunicorn.

The engine is started apart (`tokenwire engine --listen ENDPOINT`) and named by TOKENWIRE_ENGINE; every other setting of
`tokenwire api` is its variable, too. The time limits are ordered: a worker's own drain ends first, then gunicorn's
patience, then its watchdog.
"""

import os
import sys
from typing import Any

from deploy.plan import FRONTEND_DEFAULTS
from deploy.settings import Settings, UsageError, resolve
from protocol.listener import bound
from protocol.version import own_version


def _resolved() -> Settings:
    try:
        return resolve(["api"], os.environ, own_version())
    except UsageError as error:
        print(f"tokenwire: error: {error}", file=sys.stderr)
        sys.exit(2)


_settings = _resolved()
_host = _settings["host"]
_drain_s = max(_settings.seconds("shutdown-timeout"), _settings.seconds("drain-grace"))
_board = os.memfd_create("tokenwire-board", os.MFD_CLOEXEC)  # workers are forked, and so they have it, too
_given = {"TOKENWIRE_ENGINE": _settings["engine"], "TOKENWIRE_BOARD_FD": str(_board)}
# Workers read their settings in the form that the supervisor's children get.
os.environ.update(FRONTEND_DEFAULTS | os.environ | _settings.variables_for("api") | _given)

bind = f"[{_host}]:{_settings['port']}" if ":" in _host else f"{_host}:{_settings['port']}"
workers = _settings.integer("api-workers")
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
        bound(listener.sock)
