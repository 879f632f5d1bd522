"""Starts the processes of one command, starts again what dies, replaces frontends on SIGHUP, and ends all in order.

Knows neither HTTP nor ZeroMQ: a child tells through a pipe that it is ready, and through its exit code how it ended.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from deploy.children import Child, ChildSpec
from deploy.fate import COULD_NOT_START, Fatal, Fate
from deploy.place import NotReplaced, Place

logger: Final = logging.getLogger("tokenwire.supervisor")

OK: Final = 0
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
    start_limit_s: float = 120.0  # for a frontend's successor to be ready, before a roll is given up
    backoff_s: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0)  # before a start, by the deaths so far


class Supervisor:
    """One life of one command. The engine's epoch counts its starts."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._engine: Child | None = None
        limits = plan.backoff_s, plan.start_limit_s
        self._places = [Place(spec, self._start, *limits) for spec in plan.frontends]
        self._began_s = time.monotonic()
        self._unready = {spec.name for spec in (plan.engine, *plan.frontends) if spec is not None}
        self._all_ready = asyncio.Event()
        self._hung_up = asyncio.Event()  # the frontends are to be replaced
        self._signalled = asyncio.Event()
        self._signalled_twice = asyncio.Event()
        self._lifeline, self._lifeline_end = os.pipe()

    async def run(self) -> int:
        """The command's exit code."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
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

    def _on_hangup(self) -> None:
        if self._plan.frontends and not self._plan.frontends_last:
            self._hung_up.set()
        else:
            logger.warning("SIGHUP: there are no frontends here to be replaced")

    def _children(self) -> list[Child]:
        return [*self._frontends(), *([self._engine] if self._engine is not None else [])]

    def _frontends(self) -> list[Child]:
        return [child for place in self._places for child in place.children]

    # ------------------------------------------------------------------------------------------------ keeping alive

    async def _until_stopped(self) -> int:
        """Keeps all children running until a signal comes or one of them can't be started."""
        keepers = [asyncio.create_task(place.keep()) for place in self._places]
        keepers.append(asyncio.create_task(self._roll_when_asked()))
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

    async def _start(self, spec: ChildSpec, more: Mapping[str, str]) -> Child:
        return await Child.start(spec, self._lifeline, more, lambda: self._on_ready(spec.name))

    def _on_ready(self, name: str) -> None:
        """Tells once, when everything was ready for the first time."""
        if name in self._unready:
            self._unready.remove(name)
            if not self._unready:
                self._all_ready.set()
                logger.info("%s (ready after %.1f s)", self._plan.banner, time.monotonic() - self._began_s)

    # ------------------------------------------------------------------------------------------------ rolling

    async def _roll_when_asked(self) -> None:
        """However often it is asked for during one roll, one more follows."""
        await self._all_ready.wait()
        while True:
            await self._hung_up.wait()
            self._hung_up.clear()
            await self._roll()

    async def _roll(self) -> None:
        """Replaces the frontends one by one. It is over when the old ones have ended, so that there are never more than
        two for a place."""
        began_s = time.monotonic()
        logger.info("rolling: new frontends take over one by one")
        replaced: list[Child] = []
        try:
            for place in self._places:
                replaced.append(await place.roll())
        except NotReplaced as error:
            logger.error("the roll is given up, and those that served go on serving: %s", error)
        await self._await_end(replaced, self._plan.frontend_limit_s + self._plan.farewell_s)
        if len(replaced) == len(self._places):
            logger.info("rolled: all frontends are new (after %.1f s)", time.monotonic() - began_s)

    # ------------------------------------------------------------------------------------------------ the end

    async def _stop(self) -> None:
        """Frontends first: their streams need the engine to finish. Those that have none end with it."""
        frontends = self._frontends()
        for child in frontends:
            child.terminate()
        if not self._plan.frontends_last:
            await self._await_end(frontends, self._plan.frontend_limit_s + self._plan.farewell_s)
        if self._engine is not None:
            self._engine.terminate()
            limit_s = self._plan.engine_limit_s if self._engine.ready else 0.0
            await self._await_end([self._engine], limit_s + self._plan.farewell_s)
        if self._plan.frontends_last:
            await self._await_end(frontends, 0.0)

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
            ends.cancel()


async def _all_ended(children: Iterable[Child]) -> None:
    await asyncio.gather(*(child.wait() for child in children))
