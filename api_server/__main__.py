"""`python -m api_server`: one frontend process. The supervisor starts it; by hand, --host, --port and --engine do."""

import argparse
import os
import sys
from typing import Final

from api_server.config import PREFIX, Config, ConfigError, from_environ
from protocol.lifeline import hang_on_parent

BAD_USAGE: Final = 2


def main() -> int:
    """The process's exit code."""
    hang_on_parent()
    try:
        config = _config(sys.argv[1:])
    except ConfigError as error:
        print(f"api_server: {error}", file=sys.stderr)
        return BAD_USAGE
    from api_server.app import create_app  # after the settings, so that a bad one is told at once
    from api_server.server import serve
    from protocol.logs import set_up_logging

    set_up_logging("api_server", config.log_level, config.log_format)
    serve(create_app(config), config.listen_fd)
    return 0


def _config(arguments: list[str]) -> Config:
    parser = argparse.ArgumentParser(
        "python -m api_server", description="One frontend. All else: TOKENWIRE_* variables."
    )
    for name in ("host", "port", "engine"):
        parser.add_argument(f"--{name}", help=f"as {PREFIX}{name.upper()}")
    given = {f"{PREFIX}{name.upper()}": text for name, text in vars(parser.parse_args(arguments)).items() if text}
    return from_environ(os.environ | given)


if __name__ == "__main__":
    sys.exit(main())
