"""How many connections a process can hold: as many as it may have descriptors, but for some that other things need.

Out of descriptors a process can neither meet a new engine nor read a file, and whoever connects is dropped without a
word. So from some number of connections on, newcomers are told that there are too many.
"""

import resource
from contextlib import suppress
from typing import Final, NamedTuple

RESERVE: Final = 256  # descriptors for everything else, and for connections whose requests are refused
RESERVE_SHARE: Final = 4  # of few descriptors, the reserve is the fourth part


class Room(NamedTuple):
    """Numbers of connections: up to which they are served, and up to which they are told why they are not."""

    served: int
    told: int


def make_room() -> Room:
    """Raises this process's limit to what it may be, because by default it is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    reserve = min(RESERVE, soft // RESERVE_SHARE)
    return Room(soft - reserve, soft - reserve // 2)
