"""What passes between a frontend that leaves and the one that takes over from it: open connections, over a passage that
the supervisor keeps for both, after the supervisor's signal to the one that leaves.

A connection that moves is never closed, so no request that is on its way is lost. Those that nobody has taken yet wait
in the passage, whoever reads it next.
"""

import array
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

RETIRE: Final = signal.SIGUSR2  # to a frontend: another one serves in its place now
_KEPT: Final = b"k"
_FRESH: Final = b"f"


class Passage(NamedTuple):
    """The two ends: one takes in what the other gives out."""

    give: socket.socket
    take: socket.socket


@contextmanager
def passage() -> Iterator[Passage]:
    """A new one. Its ends never block, in whatever process."""
    give, take = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with give, take:
        give.setblocking(False)
        take.setblocking(False)
        yield Passage(give, take)


def give(end: socket.socket, descriptor: int, *, kept: bool) -> bool:
    """Sends a connection, of which the caller then closes its own descriptor. False if there is no room now.

    `kept`: it has had a request, and waits for the next one.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
    try:
        end.sendmsg([_KEPT if kept else _FRESH], rights)
    except OSError:  # full, or too many descriptors under way
        return False
    return True


def take(end: socket.socket) -> tuple[socket.socket, bool] | None:
    """The next connection and whether it was kept, or None if there is none now."""
    try:
        data, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    except OSError:
        return None
    if not descriptors:  # there was no room for another one here, and the connection is closed
        return None
    return socket.socket(fileno=descriptors[0]), data == _KEPT
