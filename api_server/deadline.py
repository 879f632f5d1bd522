"""A time limit on a whole answer, at the price of one timer per request instead of one per token."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from api_server.errors import ApiError

T = TypeVar("T")


class Deadline:
    """Ends the wait that is under way when its time comes, and refuses later ones."""

    def __init__(self, first_token_s: float, whole_s: float) -> None:
        """Seconds from now until the first token must be there, and until all must be."""
        loop = asyncio.get_running_loop()
        first_s = min(first_token_s, whole_s)
        self._whole_s: Final = whole_s
        self._ends_s: Final = loop.time() + whole_s
        self._timer = loop.call_later(first_s, self._expire, f"The first token took longer than {first_s:g} s.")
        self._waiting: asyncio.Task[object] | None = None
        self._first = True
        self._over: ApiError | None = None

    async def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work()`. Raises ApiError request_timeout when the time is over."""
        if self._over is not None:
            raise self._over
        task = asyncio.current_task()
        assert task is not None
        earlier = task.cancelling()
        self._waiting = task
        try:
            return await work()
        except asyncio.CancelledError:
            if (over := self._ended()) is not None and task.uncancel() <= earlier:
                raise over from None
            raise  # a cancellation from elsewhere goes first
        finally:
            self._waiting = None

    def first_token(self) -> None:
        """From here on the limit is that of the whole answer. May be called any number of times."""
        if self._first:
            self._first = False
            self._timer.cancel()
            message = f"The answer took longer than {self._whole_s:g} s."
            self._timer = asyncio.get_running_loop().call_at(self._ends_s, self._expire, message)

    def close(self) -> None:
        self._timer.cancel()

    def _ended(self) -> ApiError | None:
        """Read through a call, because it changes behind an await."""
        return self._over

    def _expire(self, message: str) -> None:
        self._over = ApiError("request_timeout", message)
        if self._waiting is not None:
            self._waiting.cancel()
