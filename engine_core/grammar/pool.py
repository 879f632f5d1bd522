"""The followers by grammar: which there are, which gives way to another, and what it means that one has died."""

import signal
from collections import OrderedDict
from typing import Final

from engine_core.grammar import bounds
from engine_core.grammar.processes import Process, Processes
from protocol.sampling import Grammar

# Deaths that are the grammar's own doing. Whatever else ended a process came from outside.
_TOO_MUCH: Final = f"takes more than {bounds.COMPILE_BYTES >> 20} MiB, or is nested too deep"
_DEATHS: Final = {
    -signal.SIGXCPU: f"takes longer than {bounds.COMPILE_S} s to compile and to try",
    -signal.SIGALRM: f"takes longer than {bounds.COMPILE_WALL_S:g} s to compile and to try, beside all else",
    -signal.SIGPROF: f"takes longer than {bounds.MASK_CPU_S:g} s for a single token",
    -signal.SIGABRT: _TOO_MUCH,
    -signal.SIGSEGV: _TOO_MUCH,
    -signal.SIGBUS: _TOO_MUCH,
}


def cause_of_death(code: int) -> str | None:
    """Why a grammar has ended its process, for the client; None if it was not the grammar."""
    death = _DEATHS.get(code)
    return None if death is None else f"The grammar {death}."


class Pool:
    """At most one living follower for each grammar. Those that compile or have users stay; of the others, the ones used
    last."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._living: OrderedDict[bytes, Process] = OrderedDict()  # by digest, the longest unused first

    def find(self, digest: bytes) -> Process | None:
        """One that lives; it counts as used."""
        process = self._living.get(digest)
        if process is None or process.spent:
            return None
        self._living.move_to_end(digest)
        return process

    def lend(self, grammar: Grammar, digest: bytes) -> Process:
        """The living one, or a new one that compiles first; with one user more."""
        process = self.find(digest)
        if process is None:
            process = self._living[digest] = self.processes.fork(grammar)
        process.users += 1
        return process

    def give_back(self, process: Process) -> None:
        process.users -= 1

    def make_room(self) -> bool:
        """Whether there may be one more, once the longest unused has given way to it."""
        for digest in [digest for digest, process in self._living.items() if process.spent]:
            del self._living[digest]
        if len(self._living) < bounds.FOLLOWERS_MAX:
            return True
        unused = next((process for process in self._living.values() if not process.users), None)
        if unused is None:
            return False
        del self._living[unused.digest]
        self.processes.drop(unused)
        return True

    def close(self) -> None:
        """Ends all of them."""
        self.processes.close()
