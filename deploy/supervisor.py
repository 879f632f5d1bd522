"""Starts the processes of one command, starts again what dies, and ends them all in order.

Knows neither HTTP nor ZeroMQ: a child tells through a pipe that it is ready, and through its exit code how it ended.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.children import Child, ChildSpec, describe

logger: Final = logging.getLogger("tokenwire.supervisor")

OK: Final = 0
BAD_USAGE: Final = 2
COULD_NOT_START: Final = 3
STEADY_S: Final = 60.0  # a child that lived so long was well: the back-off begins anew
FAILED_STARTS_MAX: Final = 5  # in a row, by a child that was ready once or was killed before it could be
YOUNG_S: Final = 1.0  # dying younger than this is a failed start, ready or not
AT_ONCE_S: Final = 3.0  # the same after a second signal
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
EPOCH_VARIABLE: Final = "TOKENWIRE_EPOCH"


@dataclass(frozen=True)
class Plan:
    """What runs, and how long it may take to end."""

    banner: str  # told once everything is ready
    engine: ChildSpec | None = None
    frontends: tuple[ChildSpec, ...] = ()
    frontends_last: bool = False  # they only tell of the engine, until it has ended
    first_epoch: int = 1
    frontend_limit_s: float = 120.0  # a frontend's drain, before it is killed
    engine_limit_s: float = 0.0
    farewell_s: float = 5.0  # for a child to end after its own time limit
    backoff_s: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0)  # before a start, by the deaths so far


class Fatal(Exception):
    """Starting again would not help. The message is empty if the child has told already; `code` is the command's."""

    def __init__(self, message: str, code: int = COULD_NOT_START) -> None:
        super().__init__(message)
        self.code = code


class Supervisor:
    """One life of one command. The engine's epoch counts its starts."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._engine: Child | None = None
        self._frontends: dict[int, Child] = {}  # by slot
        self._began_s = time.monotonic()
        self._unready = {spec.name for spec in (plan.engine, *plan.frontends) if spec is not None}
        self._signalled = asyncio.Event()
        self._signalled_twice = asyncio.Event()
        self._lifeline, self._lifeline_end = os.pipe()

    async def run(self) -> int:
        """The command's exit code."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, logger.warning, "SIGHUP: rolling the frontends is not supported yet")
        try:
            code = await self._until_stopped()
            await self._stop()
            return code
        finally:
            for child in self._children():
                child.kill()
            os.close(self._lifeline)
            os.close(self._lifeline_end)

    def _on_signal(self) -> None:
        if self._signalled.is_set():
            self._signalled_twice.set()
            return
        self._signalled.set()
        plan = self._plan
        limit_s = plan.engine_limit_s if plan.frontends_last else max(plan.frontend_limit_s, plan.engine_limit_s)
        logger.info("stopping; running streams may take %g s, a second signal ends them", limit_s)

    def _children(self) -> list[Child]:
        return [*self._frontends.values(), *([self._engine] if self._engine is not None else [])]

    # ------------------------------------------------------------------------------------------------ keeping alive

    async def _until_stopped(self) -> int:
        """Keeps all children running until a signal comes or one of them can't be started."""
        keepers = [asyncio.create_task(self._keep_frontend(slot)) for slot in range(len(self._plan.frontends))]
        if self._plan.engine is not None:
            keepers.append(asyncio.create_task(self._keep_engine(self._plan.engine)))
        signalled = asyncio.create_task(self._signalled.wait())
        try:
            done, _ = await asyncio.wait({signalled, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            others = [*keepers, signalled]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        code = OK
        for failure in (task.exception() for task in done if task is not signalled):
            code = failure.code if isinstance(failure, Fatal) else COULD_NOT_START
            if not isinstance(failure, Fatal):
                logger.error("the supervisor failed", exc_info=failure)
            elif str(failure):
                logger.error("%s", failure)
        return code

    async def _keep_engine(self, spec: ChildSpec) -> None:
        fate = Fate(spec.name, self._plan.backoff_s)
        epoch = self._plan.first_epoch
        while True:
            self._engine = await self._start(spec, {EPOCH_VARIABLE: str(epoch)})
            delay_s = fate.after(self._engine, await self._engine.wait())
            epoch += 1
            logger.warning("%s; starting epoch %d in %g s", fate.story, epoch, delay_s)
            await asyncio.sleep(delay_s)

    async def _keep_frontend(self, slot: int) -> None:
        spec = self._plan.frontends[slot]
        fate = Fate(spec.name, self._plan.backoff_s)
        while True:
            child = self._frontends[slot] = await self._start(spec, {})
            delay_s = fate.after(child, await child.wait())
            logger.warning("%s; starting it again in %g s", fate.story, delay_s)
            await asyncio.sleep(delay_s)

    async def _start(self, spec: ChildSpec, more: Mapping[str, str]) -> Child:
        return await Child.start(spec, self._lifeline, more, lambda: self._on_ready(spec.name))

    def _on_ready(self, name: str) -> None:
        """Tells once, when everything was ready for the first time."""
        if name in self._unready:
            self._unready.remove(name)
            if not self._unready:
                logger.info("%s (ready after %.1f s)", self._plan.banner, time.monotonic() - self._began_s)

    # ------------------------------------------------------------------------------------------------ the end

    async def _stop(self) -> None:
        """Frontends first: their streams need the engine to finish. Those that have none end with it."""
        for child in self._frontends.values():
            child.terminate()
        if not self._plan.frontends_last:
            await self._await_end(self._frontends.values(), self._plan.frontend_limit_s + self._plan.farewell_s)
        if self._engine is not None:
            self._engine.terminate()
            limit_s = self._plan.engine_limit_s if self._engine.ready else 0.0
            await self._await_end([self._engine], limit_s + self._plan.farewell_s)
        if self._plan.frontends_last:
            await self._await_end(self._frontends.values(), 0.0)

    async def _await_end(self, children: Iterable[Child], limit_s: float) -> None:
        """Returns when all have ended. A second signal asks again, and those that outstay their time are killed."""
        running = [child for child in children if not child.ended]
        ends = asyncio.create_task(_all_ended(running))
        again = asyncio.create_task(self._signalled_twice.wait())
        try:
            await asyncio.wait({ends, again}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not ends.done() and again.done():
                for child in running:
                    child.terminate()
                await asyncio.wait({ends}, timeout=AT_ONCE_S)
            for child in running:
                child.kill()
            await ends
        finally:
            again.cancel()


async def _all_ended(children: Iterable[Child]) -> None:
    await asyncio.gather(*(child.wait() for child in children))


class Fate:
    """What becomes of one child's place after each death."""

    def __init__(self, name: str, backoff_s: Sequence[float]) -> None:
        self.story = ""
        self._backoff_s = backoff_s
        self._name = name
        self._proved = False  # it was ready once
        self._deaths = 0  # since it last was steady
        self._failed_starts = 0  # in a row

    def after(self, child: Child, code: int) -> float:
        """Seconds to wait before the next start. Raises Fatal if there should be none."""
        self.story = f"{self._name} (pid {child.pid}) {describe(code)}"
        ready = child.ready
        if not ready and not self._proved and code >= 0:
            told = code in (BAD_USAGE, COULD_NOT_START)
            raise Fatal("" if told else f"{self.story} before it was ready", code if told else COULD_NOT_START)
        self._proved = self._proved or ready
        self._failed_starts = self._failed_starts + 1 if not ready or child.lived_s < YOUNG_S else 0
        if self._failed_starts >= FAILED_STARTS_MAX:
            raise Fatal(f"{self.story}: {FAILED_STARTS_MAX} starts in a row have failed")
        self._deaths = 0 if child.lived_s >= STEADY_S else self._deaths
        delay_s = self._backoff_s[min(self._deaths, len(self._backoff_s) - 1)]
        self._deaths += 1
        return delay_s
