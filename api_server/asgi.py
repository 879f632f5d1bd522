"""`app`, for gunicorn: settings from TOKENWIRE_* environment variables."""

import functools
import os
import sys
from typing import Final

from api_server.app import create_app
from api_server.config import Config, ConfigError, from_environ
from api_server.server import make_server
from protocol.logs import set_up_logging

BOOT_ERROR: Final = 3  # gunicorn's: another worker would fail, too


def _config() -> Config:
    try:
        return from_environ(os.environ)
    except ConfigError as error:
        print(f"api_server: {error}", file=sys.stderr)
        sys.exit(BOOT_ERROR)


config = _config()
set_up_logging("api_server", config.log_level, config.log_format)
app = create_app(config)
app.state.make_server = functools.partial(make_server, app)  # for a gunicorn worker, which may not import us
