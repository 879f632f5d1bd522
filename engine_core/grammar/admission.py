"""Requests whose grammar is yet to be compiled: who waits, what is compiled next, what was refused.

One grammar is compiled at a time. A request waits outside the engine's queue, unanswered, and comes back when there is
an answer to it. Knows of a request only who sent it, its grammar and its handles.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass

from engine_core.grammar import bounds
from engine_core.grammar.pool import Pool, cause_of_death
from engine_core.grammar.processes import Process, digest_of
from protocol.messages import Abort, Generate
from protocol.sampling import Grammar
from protocol.validate import InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A request, and the handles of its sequences that somebody wants."""

    peer: bytes
    command: Generate
    grammar: Grammar
    digest: bytes
    wanted: set[int]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Of a grammar. Until then it is not tried again."""

    message: str
    code: str
    until_s: float


class Admission:
    """Compiles the grammars of those who ask."""

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._pool = pool
        self._clock = clock
        self._waiting: list[Waiting] = []  # first come, first compiled
        self._compiling: Process | None = None
        self._retried = False
        self._refusals: OrderedDict[bytes, Refusal] = OrderedDict()  # by digest, the oldest first

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    def passed(self, peer: bytes, command: Generate) -> bool:
        """Whether the request may come in; if not, it comes back from `settled`. Raises InvalidRequest if its grammar
        is refused, or too many wait."""
        grammar = command.sampling.grammar
        if grammar is None:
            return True
        if unusable := self._pool.processes.unusable:
            raise InvalidRequest(f"This model can't be held to a grammar: {unusable}.", grammar.param)
        digest = digest_of(grammar)
        if (refusal := self._refusals.get(digest)) is not None and self._clock() < refusal.until_s:
            raise InvalidRequest(refusal.message, grammar.param, refusal.code)
        process = self._pool.find(digest)
        if process is not None and process.compiled:
            return True
        crowded = len(self._digests | {digest}) > bounds.GRAMMARS_WAITING_MAX
        if crowded or len(self._waiting) >= bounds.REQUESTS_WAITING_MAX:
            message = f"{len(self._waiting)} requests are waiting for their grammars to be compiled already."
            raise InvalidRequest(message, code="queue_full")
        wanted = {sequence.handle for sequence in command.sequences}
        self._waiting.append(Waiting(peer, command, grammar, digest, wanted))
        return False

    def forget(self, peer: bytes, handles: Collection[int]) -> None:
        """Nobody wants these sequences."""
        for waiting in self._waiting:
            if waiting.peer == peer:
                waiting.wanted.difference_update(handles)
        self._waiting = [waiting for waiting in self._waiting if waiting.wanted]

    def withdraw(self, rid: str, key: bytes) -> list[bytes]:
        """A request is cancelled by a holder of its key. Returns the peers that wait for an answer to it: it won't come
        back from `settled`."""
        found = [one for one in self._waiting if one.command.rid == rid and one.command.key == key]
        self._waiting = [one for one in self._waiting if one not in found]
        return [waiting.peer for waiting in found]

    def settled(self, peers: Container[bytes], *, draining: bool) -> list[tuple[bytes, Generate | Abort]]:
        """Commands that are to be taken as if they came now: there is an answer to them. Those of others than `peers`
        are forgotten. With `draining`, all come back."""
        if not self._waiting and self._compiling is None:
            return []
        self._pool.processes.turn()
        self._waiting = [waiting for waiting in self._waiting if waiting.peer in peers]
        if not draining:
            self._compile_next()  # only now: the last one has its users, and does not give way to this one
        self._hear()
        answered = {digest for digest in self._digests if draining or self._answered(digest)}
        done = [waiting for waiting in self._waiting if waiting.digest in answered]
        self._waiting = [waiting for waiting in self._waiting if waiting.digest not in answered]
        commands: list[tuple[bytes, Generate | Abort]] = []
        for waiting in done:
            commands.append((waiting.peer, waiting.command))
            handles = [sequence.handle for sequence in waiting.command.sequences]
            if aborted := [handle for handle in handles if handle not in waiting.wanted]:
                commands.append((waiting.peer, Abort(aborted)))
        return commands

    # ------------------------------------------------------------------------------------------------ inside

    @property
    def _digests(self) -> set[bytes]:
        """Of the grammars that are waited for."""
        return {waiting.digest for waiting in self._waiting}

    def _answered(self, digest: bytes) -> bool:
        process = self._pool.find(digest)
        refusal = self._refusals.get(digest)
        refused = refusal is not None and self._clock() < refusal.until_s
        return refused or (process is not None and process.compiled) or bool(self._pool.processes.unusable)

    def _compile_next(self) -> None:
        if self._compiling is None and self._waiting and self._pool.make_room():
            self._compiling = self._pool.lend(self._waiting[0].grammar, self._waiting[0].digest)

    def _hear(self) -> None:
        """What became of the one that compiles."""
        process = self._compiling
        if process is None:
            return
        if process.refusal:
            self._refuse(process.digest, Refusal(process.refusal, "invalid_request_error", float("inf")))
        elif process.code is not None and not process.compiled:
            cause = cause_of_death(process.code)
            if cause is None and not self._retried:
                self._pool.give_back(process)
                self._compiling = self._pool.lend(process.grammar, process.digest)
                self._retried = True
                return
            if cause is None:
                lost = "The process that compiles grammars was lost."
                self._refuse(process.digest, Refusal(lost, "internal_error", self._clock() + 1.0))
            else:
                until_s = self._clock() + bounds.REFUSED_S
                self._refuse(process.digest, Refusal(cause, "invalid_request_error", until_s))
        elif not process.compiled:
            return
        self._pool.give_back(process)
        self._compiling = None
        self._retried = False

    def _refuse(self, digest: bytes, refusal: Refusal) -> None:
        self._refusals.pop(digest, None)
        self._refusals[digest] = refusal
        if len(self._refusals) > bounds.REFUSALS_MAX:
            self._refusals.popitem(last=False)
