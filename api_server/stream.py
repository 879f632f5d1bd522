"""One request's mailbox: what the engine said and its reader has not taken yet, merged per sequence.

A slow reader costs no more than the tokens themselves, and the log probabilities of its prompts where it asked for
them. Leaving a stream early is the abort: `close` is synchronous, because an await in a cancelled task is cancelled
again.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from api_server.errors import ApiError
from api_server.tallies import Tallies
from protocol import messages as wire
from protocol.prompt_logprobs import PromptLogprobs

Express = Callable[[int, wire.Delta], bool]

TAKEN_NUMBERS: Final = 5_000  # of log probabilities of short prompts that are taken together
TAKEN_TOKENS: Final = 50  # of outputs that have log probabilities: with alternatives they are some milliseconds' work


class Correspondent(Protocol):
    """Where mailboxes come from, and whom they tell that they are done."""

    tallies: Tallies

    def forget(self, handles: Sequence[int]) -> None: ...

    def forget_request(self, rid: str) -> None: ...

    def send_later(self, command: wire.Command) -> None: ...


class PromptBox:
    """A prompt's log probabilities: the portions that nobody has taken yet, and how far they go."""

    __slots__ = ("_length", "end", "portions")

    def __init__(self, length: int) -> None:
        """`length` is the prompt's, in tokens."""
        self._length = length
        self.end = 1  # the position behind the last one that has come; the first token has no log probability
        self.portions: deque[PromptLogprobs] = deque()

    @property
    def here(self) -> bool:
        """All have come."""
        return self.end >= self._length

    @property
    def taken(self) -> bool:
        """All have come and been taken."""
        return self.here and not self.portions

    def put(self, portion: PromptLogprobs) -> bool:
        """What is there already is cut off. False if something before it is missing."""
        if portion.pos > self.end:
            return False
        if portion.end > self.end:
            self.portions.append(portion.since(self.end))
            self.end = portion.end
        return True


class Stream:
    """One request's mailbox. Sequence `index` is prompt * n + choice. Use it in a `with`: leaving it aborts whatever
    has not finished."""

    __slots__ = (
        "_boxes",
        "_choices",
        "_client",
        "_crowded",
        "_express",
        "_failure",
        "_first_handle",
        "_hold",
        "_news",
        "_positions",
        "_resumable",
        "_unfinished",
        "_waiter",
        "accepted",
        "rid",
        "size",
    )

    def __init__(
        self,
        client: Correspondent,
        rid: str,
        first_handle: int,
        size: int,
        prompts: Sequence[int] = (),
        *,
        resumable: bool = False,
    ) -> None:
        """`prompts` are the prompts' lengths if their log probabilities are to come. Those of a prompt are handed out
        before any token of its choices."""
        self.rid = rid
        self.size = size
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._resumable = resumable
        self._first_handle = first_handle
        self._positions = [0] * size  # output tokens received, per sequence
        self._unfinished = set(range(size))
        self._news: dict[int, wire.Delta] = {}
        self._crowded = False  # not all that had come was taken the last time
        self._boxes = [PromptBox(length) for length in prompts]
        self._choices = size // len(prompts) if prompts else size
        self._failure: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._express: Express | None = None
        self._hold: asyncio.TimerHandle | None = None  # while tokens in the middle of a sequence have to wait

    @property
    def finished(self) -> bool:
        """All sequences ended well, and everything has been taken. A failure is for `take` to raise."""
        return not self._unfinished and not self._news and all(box.taken for box in self._boxes)

    async def take(self) -> list[tuple[int, wire.Delta]]:
        """Everything since the last take, one delta per sequence that has news; waits until there is some, or none can
        come. Of log probabilities a portion at a time; those of prompts come first.

        Raises the ApiError that ended the request, after what came before it was taken.
        """
        if self._boxes and not all(box.taken for box in self._boxes):
            return await self._take_in_order()
        if self._crowded:
            await asyncio.sleep(0)  # a portion keeps its reader busy for milliseconds: between two, others have a turn
        while self._unfinished and (not self._news or self._holds()):
            await self._wait()
        return self._taken(list(self._news))

    async def _take_in_order(self) -> list[tuple[int, wire.Delta]]:
        """The same while log probabilities of prompts are to come or to be taken."""
        await asyncio.sleep(0)
        while not (found := self._next_portions() + self._ready()):
            await self._wait()
        return found

    def _next_portions(self) -> list[tuple[int, wire.Delta]]:
        """One of a prompt at most, and of several prompts as many as together are not much."""
        found = []
        room = TAKEN_NUMBERS
        for prompt, box in enumerate(self._boxes):
            if box.portions and room > 0:
                index, portion = prompt * self._choices, box.portions.popleft()
                room -= portion.numbers
                found.append((index, wire.Delta(self._first_handle + index, 0, [], prompt=portion)))
        return found

    def _ready(self) -> list[tuple[int, wire.Delta]]:
        """News of the sequences whose prompts have been taken. What is resumable is told by numbers of tokens, so there
        all prompts come first."""
        if self._resumable and not all(box.taken for box in self._boxes):
            return []
        return self._taken([index for index in self._news if self._boxes[index // self._choices].taken])

    def _taken(self, indexes: list[int]) -> list[tuple[int, wire.Delta]]:
        """News of these sequences, with log probabilities of TAKEN_TOKENS at most."""
        found, room = [], TAKEN_TOKENS
        for index in indexes:
            delta = self._news[index]
            if type(delta.tokens) is not list:
                delta.tokens = list(delta.tokens)
            count = 0 if delta.logprobs is None else len(delta.tokens)
            if count <= room:
                found.append((index, self._news.pop(index)))
            elif room:
                found.append((index, _split(delta, room)))
            room -= min(room, count)
        self._crowded = bool(self._news)
        return found

    async def _wait(self) -> None:
        """For whatever comes next. Raises the ApiError that ended the request."""
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def express(self, take: Express) -> None:
        """From now on a delta that comes while the reader waits, and is not a sequence's last, is shown to `take`
        first, with the sequence's index. If it returns True, that was all; else the reader gets the delta. It must not
        raise: who calls it serves all streams. Where log probabilities of prompts belong before the tokens, the reader
        gets everything."""
        self._express = take

    def hold(self, seconds: float) -> None:
        """For so long from now, only a sequence's end is news: what comes before it waits, and is merged."""
        if self._hold is not None:
            self._hold.cancel()
        self._hold = asyncio.get_running_loop().call_later(seconds, self._release)

    def _release(self) -> None:
        self._hold = None
        if self._news:
            self._wake()

    def _holds(self) -> bool:
        """There may be news, but none of it has to go out now."""
        if self._hold is None or self._failure is not None:
            return False
        return all(delta.finish is None for delta in self._news.values())

    def stop(self, index: int, pos: int) -> None:
        """A stop string is complete at output position `pos`: the sequence ends there, as a success."""
        if index in self._unfinished:
            self._unfinished.discard(index)
            self._client.forget([self._first_handle + index])
            self._client.send_later(wire.Stop(self._first_handle + index, pos))
            self._wake()

    def close(self) -> None:
        """Aborts what has not finished. May be called any number of times, and never blocks."""
        self._part(wire.Abort)

    def leave(self) -> None:
        """The reader has gone, and may come back: what is resumable goes on without one, all else is aborted."""
        self._part(wire.Detach if self._resumable else wire.Abort)

    def _part(self, command: type[wire.Abort | wire.Detach]) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._unfinished:
            handles = [self._first_handle + index for index in self._unfinished]
            self._unfinished = set()
            self._client.forget(handles)
            if self._failure is None:
                self._client.send_later(command(handles))
        self._client.forget_request(self.rid)

    def put(self, delta: wire.Delta) -> None:
        """The demux's end. Tokens that are there already are cut off; a gap can't be repaired and ends the request."""
        index = delta.handle - self._first_handle
        if delta.prompt is not None:
            self._put_portion(index, delta.prompt)
            return
        if self._boxes and index % self._choices == 0 and not self._boxes[index // self._choices].here:
            self._lost("log probabilities of the prompt")
            return
        missing = delta.pos - self._positions[index]
        if missing > 0:
            self._lost(f"{missing} tokens")
            return
        if missing < 0:
            delta.tokens = delta.tokens[-missing:]
            delta.logprobs = delta.logprobs and delta.logprobs[-missing:]
        self._positions[index] += len(delta.tokens)
        if delta.finish is not None:
            self._unfinished.discard(index)
            self._client.forget([delta.handle])
        elif self._express is not None and self._at_once and self._express(index, delta):
            return
        earlier = self._news.get(index)
        if earlier is None:
            self._news[index] = delta
        else:
            self._client.tallies.coalesced_tokens += len(delta.tokens)
            _merge(earlier, delta)
        if self._hold is None or delta.finish is not None:
            self._wake()

    def _put_portion(self, index: int, portion: PromptLogprobs) -> None:
        if not self._boxes:
            return  # nobody asked
        if self._boxes[index // self._choices].put(portion):
            self._wake()
        else:
            self._lost("log probabilities of the prompt")

    def _lost(self, what: str) -> None:
        self.fail(ApiError("internal_error", f"{what} were lost between engine and frontend"))

    def fail(self, error: ApiError) -> None:
        """Ends the request with an error, unless it has ended already."""
        if self._failure is None and self._unfinished:
            self._failure = error
            self._client.forget([self._first_handle + index for index in self._unfinished])
            if not self.accepted.done():
                self.accepted.set_exception(error)
                self.accepted.exception()  # who does not wait for it reads the failure from `take`
            self._wake()

    @property
    def _at_once(self) -> bool:
        """The reader has taken all that came before, and nothing has to come before what comes now."""
        return self._hold is None and not self._boxes and self._waiter is not None and not self._waiter.done()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _split(delta: wire.Delta, count: int) -> wire.Delta:
    """Takes the first `count` tokens from a delta with log probabilities."""
    assert delta.logprobs is not None
    head = wire.Delta(delta.handle, delta.pos, delta.tokens[:count], first=delta.first, logprobs=delta.logprobs[:count])
    delta.pos += count
    delta.tokens, delta.logprobs, delta.first = delta.tokens[count:], delta.logprobs[count:], None
    return head


def _merge(earlier: wire.Delta, later: wire.Delta) -> None:
    """`later` directly follows `earlier` in the output. Until they are taken, four bytes for a token are enough."""
    if type(earlier.tokens) is list:
        earlier.tokens = array("I", earlier.tokens)  # type: ignore[assignment]
    earlier.tokens.extend(later.tokens)
    earlier.finish = later.finish
    earlier.stop_token = later.stop_token
    earlier.first = earlier.first or later.first
    if later.logprobs is not None:
        earlier.logprobs = (earlier.logprobs or []) + later.logprobs
