"""Readers that have stopped, told from those that are slow. Knows a transport, and nothing of what it carries."""

import asyncio
import fcntl
import struct
import termios


class Stall:
    """Ends the connection once the peer has taken no byte for `timeout_s` although there were some for it, until it is
    told that this is over."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._timeout_s = timeout_s
        self._unread = self._count()
        self._moved_s = loop.time()
        self._timer = loop.call_later(timeout_s / 4, self._look)

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        unread = self._count()
        if unread != self._unread or not unread:
            self._unread, self._moved_s = unread, now
        elif now - self._moved_s >= self._timeout_s:
            self._transport.abort()
            return
        self._timer = self._loop.call_later(self._timeout_s / 4, self._look)

    def _count(self) -> int:
        """Bytes that the peer has not acknowledged, ours and the kernel's. The kernel tells of room only in large
        steps, so the buffer alone would take a slow reader for one that has stopped."""
        kernel = 0
        if (socket := self._transport.get_extra_info("socket")) is not None:
            (kernel,) = struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))
        return self._transport.get_write_buffer_size() + int(kernel)
