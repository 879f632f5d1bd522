"""The worker class for gunicorn. The app brings its own server, so that bounds and drain are the same as under ours."""

import sys
from typing import Any, Final

from uvicorn_worker import UvicornWorker

BOOT_ERROR: Final = 3  # gunicorn's: the arbiter gives up instead of trying again


class FrontendWorker(UvicornWorker):  # type: ignore[misc]
    """uvicorn's worker in all but the server."""

    CONFIG_KWARGS: dict[str, Any] = {"loop": "uvloop", "access_log": False}

    async def _serve(self) -> None:
        server = self.wsgi.state.make_server(
            leaves=True, callback_notify=self.callback_notify, timeout_notify=self.timeout
        )
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(BOOT_ERROR)
