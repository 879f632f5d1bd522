"""One request's mailbox: what the engine said and its reader has not taken yet, merged per sequence.

A slow reader costs no more than the tokens themselves. Leaving a stream early is the abort: `close` is synchronous,
because an await in a cancelled task is cancelled again.
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from api_server.errors import ApiError
from protocol import messages as wire


class Correspondent(Protocol):
    """Where mailboxes come from, and whom they tell that they are done."""

    def forget(self, handles: Sequence[int]) -> None: ...

    def forget_request(self, rid: str) -> None: ...

    def send_later(self, command: wire.Command) -> None: ...


class Stream:
    """One request's mailbox. Sequence `index` is prompt * n + choice. Use it in a `with`: leaving it aborts whatever
    has not finished."""

    def __init__(self, client: Correspondent, rid: str, first_handle: int, size: int) -> None:
        self.rid = rid
        self.size = size
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._first_handle = first_handle
        self._positions = [0] * size  # output tokens received, per sequence
        self._unfinished = set(range(size))
        self._news: dict[int, wire.Delta] = {}
        self._failure: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """All sequences ended well, and everything has been taken. A failure is for `take` to raise."""
        return not self._unfinished and not self._news

    async def take(self) -> list[tuple[int, wire.Delta]]:
        """Everything since the last take, one delta per sequence that has news; waits until there is some.

        Raises the ApiError that ended the request, after what came before it was taken.
        """
        while not self._news:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        news, self._news = self._news, {}
        return list(news.items())

    def stop(self, index: int, pos: int) -> None:
        """A stop string is complete at output position `pos`: the sequence ends there, as a success."""
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._client.forget([self._first_handle + index])
            self._client.send_later(wire.Stop(self._first_handle + index, pos))

    def close(self) -> None:
        """Aborts what has not finished. May be called any number of times, and never blocks."""
        if self._unfinished:
            handles = [self._first_handle + index for index in self._unfinished]
            self._unfinished = set()
            self._client.forget(handles)
            if self._failure is None:
                self._client.send_later(wire.Abort(handles))
        self._client.forget_request(self.rid)

    def put(self, delta: wire.Delta) -> None:
        """The demux's end. Tokens that are there already are cut off; a gap can't be repaired and ends the request."""
        index = delta.handle - self._first_handle
        missing = delta.pos - self._positions[index]
        if missing > 0:
            self.fail(ApiError("internal_error", f"{missing} tokens were lost between engine and frontend"))
            return
        if missing < 0:
            delta.tokens = delta.tokens[-missing:]
            delta.logprobs = delta.logprobs and delta.logprobs[-missing:]
        self._positions[index] += len(delta.tokens)
        if delta.finish is not None:
            self._unfinished.discard(index)
            self._client.forget([delta.handle])
        earlier = self._news.get(index)
        if earlier is None:
            self._news[index] = delta
        else:
            _merge(earlier, delta)
        self._wake()

    def fail(self, error: ApiError) -> None:
        """Ends the request with an error, unless it has ended already."""
        if self._failure is None and self._unfinished:
            self._failure = error
            self._client.forget([self._first_handle + index for index in self._unfinished])
            if not self.accepted.done():
                self.accepted.set_exception(error)
                self.accepted.exception()  # who does not wait for it reads the failure from `take`
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _merge(earlier: wire.Delta, later: wire.Delta) -> None:
    """`later` directly follows `earlier` in the output."""
    earlier.tokens += later.tokens
    earlier.finish = later.finish
    earlier.stop_token = later.stop_token
    earlier.first = earlier.first or later.first
    if later.logprobs is not None:
        earlier.logprobs = (earlier.logprobs or []) + later.logprobs
