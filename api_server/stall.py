"""Readers that have stopped, or have gone without a word, told from those that are slow.

One look at each connection a few times within the time limit, a few connections at once: a timer for each of them would
cost every stream memory. Knows transports, and nothing of what they carry.
"""

import asyncio
import fcntl
import math
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

LOOKS: Final = 8  # at each connection within the time limit
TCP_INFO_SIZE: Final = 128
BYTES_ACKED: Final = 120  # where it stands in the kernel's struct tcp_info, eight bytes in its own order


class Stall:
    """What is known of one connection's peer as a reader."""

    __slots__ = ("_since_s", "_taken", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._taken = -1
        self._since_s: float | None = None  # when something first waited for it that still had not moved

    def look(self, now_s: float, timeout_s: float) -> None:
        """Ends the connection if the peer has taken no byte for `timeout_s` although there were some for it."""
        peer = self._transport.get_extra_info("socket")
        if peer is None or (descriptor := peer.fileno()) < 0:
            return
        (kernel,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0"))
        if not kernel and not self._transport.get_write_buffer_size():
            self._since_s = None
            return
        # What waits tells nothing: it grows with every write, and room for more comes in large steps.
        taken = _acknowledged(peer, kernel)
        if self._since_s is None or taken != self._taken:
            self._taken, self._since_s = taken, now_s
        elif now_s - self._since_s >= timeout_s:
            self._transport.abort()


class Watched(Protocol):
    """A connection's protocol."""

    stall: Stall


class Watch:
    """Looks at all connections, each of them LOOKS times within the time limit."""

    def __init__(self, connections: Iterable[Watched], timeout_s: float) -> None:
        """`connections` may change at any time."""
        self._connections: Final = connections
        self._timeout_s: Final = timeout_s
        self._round_s: Final = timeout_s / LOOKS
        self._round: deque[Stall] = deque()  # those that have not been looked at in this one
        self._size = 0
        self._next_s = 0.0
        self._ticked_s = 0.0

    def tick(self, now_s: float) -> None:
        """To be called often: does what is due since the last time."""
        if not self._round and now_s >= self._next_s:
            self._round.extend(each.stall for each in self._connections)
            self._size = len(self._round)
            self._next_s = now_s + self._round_s
        share = math.ceil(self._size * (now_s - self._ticked_s) / self._round_s)
        self._ticked_s = now_s
        for _ in range(min(share, len(self._round))):
            self._round.popleft().look(now_s, self._timeout_s)


def _acknowledged(peer: socket.socket, unread: int) -> int:
    """A number that changes as the peer takes bytes: of TCP the count of them."""
    try:
        info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        return int.from_bytes(info[BYTES_ACKED:TCP_INFO_SIZE], sys.byteorder)
    except OSError:  # a Unix socket
        return -unread
