"""One child process: how it is started, how it tells that it is ready, how it ends."""

import asyncio
import os
import signal
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol.handover import RETIRE
from protocol.lifeline import LIFELINE_VARIABLE

READY_VARIABLE: Final = "TOKENWIRE_READY_FD"


@dataclass(frozen=True)
class ChildSpec:
    """What to start: the command, what it adds to the environment, and the descriptors it inherits."""

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str]
    descriptors: tuple[int, ...] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Child:
    """A running child. It has a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone."""

    def __init__(self, process: asyncio.subprocess.Process, ready_fd: int, on_ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.started_s = time.monotonic()
        self.ready = False
        self.told: asyncio.Future[None] = loop.create_future()  # whether it is ready, or that it never will be
        self._process = process
        self._on_ready = on_ready
        self._ready_fd: int | None = ready_fd
        loop.add_reader(ready_fd, self._read_ready)
        self.end: asyncio.Task[int] = loop.create_task(self._ended())

    @classmethod
    async def start(
        cls, spec: ChildSpec, lifeline: int, more: Mapping[str, str], on_ready: Callable[[], None]
    ) -> "Child":
        """`lifeline` is the read end of a pipe whose write end only this process holds; `more` goes on top of the
        spec's variables."""
        ready, ready_child = os.pipe()
        environ = clean_environment(spec.environ) | dict(spec.variables) | dict(more)
        environ |= {LIFELINE_VARIABLE: str(lifeline), READY_VARIABLE: str(ready_child)}
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                env=environ,
                start_new_session=True,
                pass_fds=(lifeline, ready_child, *spec.descriptors),
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(ready_child)
        return cls(process, ready, on_ready)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    @property
    def lived_s(self) -> float:
        return time.monotonic() - self.started_s

    async def wait(self) -> int:
        """Its exit code; a negative number is the signal that ended it. `end` is the task that waits for it."""
        return await asyncio.shield(self.end)

    def terminate(self) -> None:
        """Asks it to end."""
        if not self.ended:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def retire(self) -> None:
        """Tells a frontend that another one serves in its place now."""
        if not self.ended:
            with suppress(ProcessLookupError):
                self._process.send_signal(RETIRE)

    def kill(self) -> None:
        """Ends it and whatever it started itself."""
        if not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _ended(self) -> int:
        code = await self._process.wait()
        self._read_ready()  # what it wrote just before its end counts
        self._close_ready()
        return code

    def _read_ready(self) -> None:
        if self._ready_fd is None:
            return
        os.set_blocking(self._ready_fd, False)
        with suppress(BlockingIOError):
            if os.read(self._ready_fd, 16):
                self.ready = True
                self._on_ready()
            self._close_ready()

    def _close_ready(self) -> None:
        if self._ready_fd is not None:
            asyncio.get_running_loop().remove_reader(self._ready_fd)
            os.close(self._ready_fd)
            self._ready_fd = None
            self.told.set_result(None)


def describe(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a child inherits: everything but our own variables, which it gets from the options, resolved. The folder the
    user stands in is no place to import from; where these packages lie is, installed or not."""
    kept = {name: value for name, value in environ.items() if not name.startswith("TOKENWIRE_")}
    kept["PYTHONSAFEPATH"] = "1"
    root = str(Path(__file__).resolve().parent.parent)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH", ""))))
    return kept
