"""A supervisor over stand-in children: real processes, signals and pipes; only their work is made up."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0


def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    ends_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_s, "the condition never came true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Running, and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # gone, maybe while it was read
        return False


class Supervised:
    """One supervisor process and what its children noted."""

    def __init__(self, folder: Path, **plan: Any) -> None:
        self.folder = folder
        self.log = folder / "log.txt"
        environ = {**os.environ, "STAND_IN": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "7"}
        environ["TOKENWIRE_LEFT_OVER"] = "from the user's shell"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.deploy.stand_in", "supervise", json.dumps(plan)], env=environ, stderr=log
            )

    def notes(self, name: str = "") -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob(f"{name}*.json"), key=lambda path: int(path.name.split(".")[1]))
        return [json.loads(path.read_text()) for path in paths]

    def running(self) -> list[int]:
        return [note["pid"] for note in self.notes() if alive(note["pid"])]

    def until_ready(self) -> None:
        until(lambda: "everything runs" in self.log.read_text())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)


Start = Callable[..., Supervised]
