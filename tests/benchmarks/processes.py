"""The processes that a benchmark starts, and ends."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.server import ROOT

END_S = 60.0


@contextmanager
def process(*command: str) -> Iterator[int]:
    """Python with these arguments, from the checkout's root; its pid. It is ended with the `with`."""
    running = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    )
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait(END_S)
