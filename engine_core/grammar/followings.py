"""The requests that are held to a grammar: their tokens go to a follower, and its masks to the sampler.

A mask is asked for when the token before it is there, and is computed while the engine publishes, schedules and runs
the model; then the sampler waits for it a little: on two cores, beside the built-in model, 7 µs for a single stream. A
request whose mask is late misses the step, and from then on is only scheduled when its mask is there, so that it keeps
nobody waiting twice. A follower's death is another's start: requests go on there with the tokens that they have, but
for the one that the follower died of.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from engine_core.grammar import bounds
from engine_core.grammar.messages import TOKENS_PER_FRAME, Answer, Order, Orders, Release, State
from engine_core.grammar.pool import Pool, cause_of_death
from engine_core.grammar.processes import Process, digest_of
from engine_core.request import NO_SLOT, Request

Failure = tuple[str, str]  # code and message, for the client

CONFLICT = "No token is left that both the grammar and the request's own limits on tokens allow."
LOST = "The processes that followed this request's grammar were lost."


@dataclass(frozen=True, slots=True)
class Mask:
    """What may come next. Bit i of byte b of `bits` [bytes] is token 8 * b + i, ends of sequence left out; they lie in
    memory that another process writes, once the next token is known. `may_end`: the output is a sentence already."""

    bits: NDArray[np.uint8]
    may_end: bool


class Following:
    """One request that is held to a grammar."""

    __slots__ = ("failure", "late", "process", "reopened", "request", "satisfied", "sent", "slot", "ticket")

    def __init__(self, request: Request, process: Process) -> None:
        self.request = request
        self.process = process
        self.slot = NO_SLOT  # in which the follower has it
        self.ticket = 0  # of the last order
        self.sent = 0  # output tokens that went out with it
        self.late = False  # a step has waited for it in vain
        self.reopened = 0
        self.satisfied = False  # the output is a sentence, and nothing more can come
        self.failure: Failure | None = None

    @property
    def answer(self) -> Answer | None:
        """To the last order."""
        answer = self.process.answers.get(self.slot)
        return answer if answer is not None and answer.ticket == self.ticket else None

    def lose_slot(self) -> None:
        """What the follower had there is gone, or about to be."""
        self.slot = NO_SLOT
        self.ticket = 0
        self.late = self.request.held = False


class Followings:
    """All of them, by request. `follow`, `advance` and `concluded` are the step loop's, the others the sampler's."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._followings: dict[Request, Following] = {}
        self._holders: dict[tuple[Process, int], Following] = {}  # by follower and slot
        self._tickets = count(1)

    # ------------------------------------------------------------------------------------------------ step loop

    def follow(self, requests: Sequence[Request]) -> None:
        """They were accepted. All of one command, so with one grammar or none."""
        grammar = requests[0].sampling.grammar
        if grammar is None:
            return
        digest = digest_of(grammar)
        for request in requests:
            self._followings[request] = Following(request, self._pool.lend(grammar, digest))

    def advance(self, requests: Sequence[Request]) -> None:
        """They have a token more, or have ended. Where the follower still compiles, all tokens go out later."""
        followings = [self._followings[request] for request in requests if request in self._followings]
        self._ask([following for following in followings if following.ticket and not following.request.ended])

    def concluded(self) -> list[tuple[Request, Failure | None]]:
        """Requests that are to end now: with a failure, or because their output is complete. Those that have ended, or
        lost their slot, are let go of."""
        if not self._followings:
            return []
        self._pool.processes.turn()
        for following in list(self._followings.values()):
            if following.request.ended:
                self._let_go(following)
            else:
                self._look_after(following)
        return [
            (following.request, following.failure)
            for following in self._followings.values()
            if following.satisfied or following.failure is not None
        ]

    # ------------------------------------------------------------------------------------------------ sampler

    def open(self, request: Request) -> None:
        """The request has just got its slot."""
        following = self._followings[request]
        self._release(following)
        former = self._holders.get((following.process, request.slot))
        if former is not None:  # preempted in the step that is being made
            former.lose_slot()
        following.slot = request.slot
        self._holders[following.process, request.slot] = following
        self._reopen(following)

    def wait(self, requests: Sequence[Request]) -> list[Mask | None]:
        """What each may have as its next token. None for one that is to miss this step: it is held from the next ones
        until its mask is there, or is about to end."""
        followings = [self._followings[request] for request in requests]
        deadline_s = time.monotonic() + bounds.PATIENCE_S
        while any(following.answer is None and not following.late for following in followings):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0.0:
                break
            self._pool.processes.turn(left_s)
        return [self._mask(following) for following in followings]

    def exhausted(self, request: Request) -> None:
        """The request's own parameters leave nothing of what its grammar allows: it ends."""
        following = self._followings[request]
        answer = following.answer
        if answer is not None and answer.state is State.SENTENCE:
            following.satisfied = True
        else:
            following.failure = ("invalid_request_error", CONFLICT)

    # ------------------------------------------------------------------------------------------------ inside

    def _reopen(self, following: Following) -> None:
        """Has the follower begin anew with all of the output; or, while that still compiles, does so later."""
        following.ticket = following.sent = 0
        if following.process.compiled:
            self._ask([following], fresh=True)

    def _ask(self, followings: Sequence[Following], *, fresh: bool = False) -> None:
        """For the masks after the tokens that they have now."""
        orders: dict[Process, list[Order]] = {}
        for following in followings:
            request = following.request
            tokens = request.tokens[request.prompt_len + following.sent :].tolist()
            begins = fresh
            while len(tokens) > TOKENS_PER_FRAME:
                portion = Order(following.slot, begins, tokens[:TOKENS_PER_FRAME])
                self._pool.processes.send(following.process, Orders([portion]))
                tokens = tokens[TOKENS_PER_FRAME:]
                begins = False
            following.ticket = next(self._tickets)
            following.sent = request.out_len
            request.held = following.late
            orders.setdefault(following.process, []).append(Order(following.slot, begins, tokens, following.ticket))
        for process, ours in orders.items():
            self._pool.processes.send(process, Orders(ours))

    def _mask(self, following: Following) -> Mask | None:
        answer = following.answer
        if answer is None:
            following.late = following.request.held = True
            return None
        if answer.state is State.COMPLETE or answer.state is State.BROKEN:
            return None
        return Mask(following.process.masks[following.slot], answer.state is State.SENTENCE)

    def _look_after(self, following: Following) -> None:
        """Takes in what happened since the last turn."""
        request = following.request
        if request.slot != following.slot:  # preempted
            self._release(following)
        if following.process.spent:
            self._move(following)
        if following.slot == NO_SLOT:
            return
        if not following.ticket and following.process.compiled:
            self._reopen(following)
        answer = following.answer
        if answer is not None:
            request.held = False
            following.satisfied |= answer.state is State.COMPLETE
            if answer.state is State.BROKEN:
                message = f"The grammar can't be followed any further: {answer.message}"
                following.failure = ("invalid_request_error", message)

    def _move(self, following: Following) -> None:
        """Its follower is gone: to another one, unless this request is what it died of."""
        process = following.process
        cause = process.refusal if process.code is None else cause_of_death(process.code)
        if cause and (not process.compiled or process.ticket == following.ticket != 0):
            following.failure = ("invalid_request_error", cause)
        elif following.reopened == bounds.REOPENED_MAX:
            following.failure = ("internal_error", LOST)
        else:
            following.reopened += 1
            slot = following.slot
            self._release(following)
            self._pool.give_back(process)
            following.process = self._pool.lend(process.grammar, process.digest)
            if slot != NO_SLOT:
                following.request.held = True
                self.open(following.request)

    def _release(self, following: Following) -> None:
        """Its slot, and what the follower has in it."""
        if following.slot == NO_SLOT:
            return
        following.process.answers.pop(following.slot, None)
        del self._holders[following.process, following.slot]
        self._pool.processes.send(following.process, Release(following.slot))
        following.lose_slot()

    def _let_go(self, following: Following) -> None:
        self._release(following)
        self._pool.give_back(following.process)
        del self._followings[following.request]
