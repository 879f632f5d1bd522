"""What every listening socket here hands on to its connections: bounds on what the kernel does for silent peers."""

import socket
from typing import Final

SEND_BUFFER: Final = 64 << 10  # bytes on their way to a reader; by default the kernel lets it be megabytes
UNSENT: Final = 16 << 10  # bytes that the kernel keeps for a reader that has no room for them
SILENT_S: Final = 15  # after so long without a word, and then as often, the peer's kernel is asked whether it is there
UNANSWERED: Final = 3  # times; then the connection is reset


def bound(listener: socket.socket) -> None:
    """Call it before there are connections: they inherit all of this when they are made.

    TCP_USER_TIMEOUT is left alone: it would also end readers that are slow but take bytes, while their window is too
    small for the next segment. Frontends see for themselves who takes nothing; and the kernel, who is gone while there
    is nothing to be taken.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NOTSENT_LOWAT, UNSENT),
        (socket.TCP_KEEPIDLE, SILENT_S),
        (socket.TCP_KEEPINTVL, SILENT_S),
        (socket.TCP_KEEPCNT, UNANSWERED),
    ):
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
