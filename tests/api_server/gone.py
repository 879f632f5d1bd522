"""Ways in which clients go.

Without a word, as when a cable is cut: a filter on the client's own socket drops whatever comes, so that its kernel
acknowledges nothing and refuses nothing. It needs no privileges."""

import ctypes
import socket
import struct
from typing import Final

SO_ATTACH_FILTER: Final = 26
DROP: Final = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0


def vanish(client: socket.socket) -> None:
    """From now on nothing reaches it. Closing it would still send its end."""
    program = ctypes.create_string_buffer(DROP, len(DROP))
    client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def reset_on_close(client: socket.socket) -> None:
    """Its close is a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
