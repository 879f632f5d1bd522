"""What every connection has, in a form that ten thousand idle ones can afford.

asyncio's Event makes a queue of 700 bytes for the tasks that may wait for it, and a connection has two.
"""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl


class Signal(asyncio.Event):
    """asyncio.Event, with room for who waits made when somebody does."""

    __slots__ = ("_is_set", "_tasks")

    def __init__(self) -> None:
        self._is_set = False
        self._tasks: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiting, self._tasks = self._tasks, None
        for task in waiting or ():
            if not task.done():
                task.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> bool:  # type: ignore[override]
        if self._is_set:
            return True
        task = asyncio.get_running_loop().create_future()
        if self._tasks is None:
            self._tasks = []
        self._tasks.append(task)
        try:
            await task
        finally:
            if self._tasks is not None and task in self._tasks:  # it was cancelled
                self._tasks.remove(task)
        return True


class Flow(FlowControl):
    """uvicorn's, with a Signal."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = Signal()
        self._is_writable_event.set()
