"""`python -m engine_core`: the engine process. All of its settings are TOKENWIRE_* variables (`engine_core.config`)."""

from protocol.lifeline import hang_on_parent

hang_on_parent()  # before anything that takes long: torch alone is a second

import faulthandler  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from types import FrameType  # noqa: E402
from typing import Final  # noqa: E402

from engine_core.config import BadSetting, from_environ  # noqa: E402
from engine_core.errors import CannotStart  # noqa: E402
from engine_core.model.source import resolve  # noqa: E402
from engine_core.tiny import MODEL_PATH  # noqa: E402
from protocol.channel import BadEndpoint, EngineChannel, check_endpoint  # noqa: E402
from protocol.logs import set_up_logging  # noqa: E402

EXIT_USAGE: Final = 2
EXIT_CANNOT_START: Final = 3


def main() -> int:
    """Exit status: 0 after a drain, 2 for a bad setting, 3 if it could not start."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor's affair
    faulthandler.enable()  # a stuck engine is ended by SIGABRT, and says where it was
    try:
        config = from_environ(os.environ)
        endpoint = check_endpoint(config.listen, insecure_tcp=config.insecure_tcp)
    except (BadSetting, BadEndpoint) as error:
        print(f"tokenwire: {error}", file=sys.stderr)
        return EXIT_USAGE
    set_up_logging("engine_core", config.log_level, config.log_format)
    try:
        channel = EngineChannel(endpoint)
    except OSError as error:  # held by another engine, or not to be made
        print(f"tokenwire: {error.filename or endpoint}: {error.strerror}", file=sys.stderr)
        return EXIT_CANNOT_START

    with channel:
        try:
            model = config.model or str(MODEL_PATH)
            source = resolve(model, revision=config.revision, trust_remote_code=config.trust_remote_code)
            from engine_core.assembly import announce_ready, make_core  # the endpoint is ours; only now the slow part

            core = make_core(config, source, channel)
        except CannotStart as error:
            print(f"tokenwire: {error}", file=sys.stderr)
            return EXIT_CANNOT_START

        def drain(signum: int, frame: FrameType | None) -> None:
            core.drain(config.shutdown_timeout)

        signal.signal(signal.SIGTERM, drain)
        signal.signal(signal.SIGINT, drain)
        gc.collect()
        gc.freeze()
        announce_ready(config.ready_fd)
        core.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
