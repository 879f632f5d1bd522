"""The `tokenwire` command. Imports nothing heavy: models are the children's business."""

import os
import sys
from collections.abc import Sequence
from typing import Final

from deploy.settings import Settings, UsageError, resolve
from protocol.version import own_version

BAD_USAGE: Final = 2
COULD_NOT_START: Final = 3
HINTS: Final = {"serve", "engine", "api"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's exit code: 0 clean, 2 bad usage, 3 could not start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return run(resolve(arguments, os.environ, own_version()))
    except UsageError as error:
        command = f" {arguments[0]}" if arguments and arguments[0] in HINTS else ""
        print(f"tokenwire: error: {error}\ntry: tokenwire{command} --help", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:  # before the supervisor had its handlers
        return 0


def run(settings: Settings) -> int:
    """Runs the supervisor until it ends."""
    import asyncio

    from deploy.plan import prepared
    from deploy.sockets import CannotStart
    from deploy.supervisor import Supervisor
    from protocol.logs import set_up_logging

    async def supervise() -> int:
        with prepared(settings, os.environ, own_version()) as plan:
            return await Supervisor(plan).run()

    set_up_logging("supervisor", settings["log-level"], "json" if settings["log-format"] == "json" else "text")
    try:
        return asyncio.run(supervise())
    except CannotStart as error:
        print(f"tokenwire: {error}", file=sys.stderr)
        return COULD_NOT_START


if __name__ == "__main__":
    sys.exit(main())
