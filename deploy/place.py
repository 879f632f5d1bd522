"""One frontend's place: who serves there now, who prepares to, and who has been replaced and finishes what it began."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from deploy.children import Child, ChildSpec, describe
from deploy.fate import Fate

logger: Final = logging.getLogger("tokenwire.supervisor")

SUCCESSOR_VARIABLE: Final = "TOKENWIRE_SUCCESSOR"  # a frontend with it accepts connections only when it can serve them
Start = Callable[[ChildSpec, Mapping[str, str]], Awaitable[Child]]


class NotReplaced(Exception):
    """The new frontend did not come up. The message says how."""


class Place:
    """`keep` alone starts and replaces who serves here, so that no two of them are started for one reason."""

    def __init__(self, spec: ChildSpec, start: Start, backoff_s: Sequence[float], start_limit_s: float) -> None:
        """`start_limit_s`: how long a successor may take until it is ready."""
        self._spec = spec
        self._start = start
        self._fate = Fate(spec.name, backoff_s)
        self._start_limit_s = start_limit_s
        self._child: Child | None = None
        self._successor: Child | None = None
        self._replaced: set[Child] = set()
        self._asked: asyncio.Future[asyncio.Future[Child]] = asyncio.get_running_loop().create_future()

    @property
    def children(self) -> list[Child]:
        """All that may still run here."""
        return [child for child in (self._child, self._successor, *self._replaced) if child is not None]

    async def keep(self) -> None:
        """Keeps a frontend serving here until it is cancelled. Raises Fatal when one can't be started."""
        child = self._child = await self._start(self._spec, {})
        while True:
            either: set[asyncio.Future[Any]] = {child.end, self._asked}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._asked.done():
                child = self._child = await self._replace(child)
            if child.end.done():
                delay_s = self._fate.after(child, child.end.result())
                logger.warning("%s; starting it again in %g s", self._fate.story, delay_s)
                await asyncio.sleep(delay_s)
                child = self._child = await self._start(self._spec, {})

    async def roll(self) -> Child:
        """Has the frontend replaced by a new one. Returns the old one, told to leave, once the new one serves, or
        raises NotReplaced."""
        answer: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._asked.set_result(answer)
        return await answer

    async def _replace(self, child: Child) -> Child:
        """Who serves here from now on: the successor, if it comes up before it is too late, or nobody serves."""
        answer = self._asked.result()
        self._asked = asyncio.get_running_loop().create_future()
        successor = self._successor = await self._start(self._spec, {SUCCESSOR_VARIABLE: "true"})
        either: set[asyncio.Future[Any]] = {successor.told, child.end}
        try:
            await asyncio.wait(either, timeout=self._start_limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not successor.ready:
                successor.kill()
        if successor.ready and not successor.ended:
            self._child, self._successor = successor, None
            self._replaced.add(child)
            child.end.add_done_callback(lambda end: self._left(child, end))
            child.retire()
            logger.info("%s: pid %d has taken over from pid %d", self._spec.name, successor.pid, child.pid)
            answer.set_result(child)
            return successor
        late = not successor.told.done()
        code = await successor.wait()
        self._successor = None
        if child.ended:
            why = f"{self._spec.name} (pid {child.pid}) died while its successor started"
        elif late:
            why = f"{self._spec.name} (pid {successor.pid}) was not ready within {self._start_limit_s:g} s"
        else:
            why = f"{self._spec.name} (pid {successor.pid}) {describe(code)} before it was ready"
        answer.set_exception(NotReplaced(why))
        return child

    def _left(self, child: Child, end: "asyncio.Task[int]") -> None:
        """One that was replaced has ended, well or not."""
        self._replaced.discard(child)
        if not end.cancelled() and (code := end.result()):
            logger.warning("%s (pid %d), replaced before, %s", self._spec.name, child.pid, describe(code))
