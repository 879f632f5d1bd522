"""`app`, for gunicorn: settings from TOKENWIRE_* environment variables."""

import functools
import os

from api_server.app import create_app
from api_server.config import from_environ
from api_server.server import make_server
from protocol.logs import set_up_logging

config = from_environ(os.environ)
set_up_logging("api_server", config.log_level, config.log_format)
app = create_app(config)
app.state.make_server = functools.partial(make_server, app)  # for a gunicorn worker, which may not import us
