"""How a child process notices that its parent is gone, however the parent died.

Two independent threads hang on it: the kernel's parent-death signal (Linux), and a pipe whose other end only the parent
holds: end of file means that it is gone, also where the signal does not exist.
"""

import ctypes
import os
import signal
import sys
import threading
from typing import Final

LIFELINE_VARIABLE: Final = "TOKENWIRE_LIFELINE_FD"
_PR_SET_PDEATHSIG: Final = 1


def hang_on_parent() -> None:
    """Ends this process with SIGKILL when its parent dies. Does nothing in a process started without a lifeline."""
    descriptor = os.environ.pop(LIFELINE_VARIABLE, None)
    if descriptor is None:
        return
    die_with_parent()
    threading.Thread(target=_die_at_end_of_file, args=(int(descriptor),), name="lifeline", daemon=True).start()


def die_with_parent() -> None:
    """Ends this process with SIGKILL when the thread that started it ends, on Linux. Nothing tells of a parent that was
    gone before the call."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _die_at_end_of_file(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
