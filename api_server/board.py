"""Memory that the frontends of one address share: a record of each, and how many connections it has.

Whoever starts them makes it and hands it on as a descriptor. A frontend claims a slot and holds the slot's lock for
life; the kernel gives a lock up when its process ends, however it ends. The record stays: who claims the slot next goes
on from there. A record is written beside the one before it, so that a reader always finds a whole one, even if the
writer was killed while it wrote.

Knows nothing of what is in a record. Needs no more than the kernel: readers wait for nobody.
"""

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple
from zlib import crc32

SLOTS: Final = 4096  # workers, twice over while they are rolled, and more
RECORD_MAX: Final = 32 << 10  # bytes, header included; there are two places for it in a slot
RECORDS_AT: Final = 128 << 10  # behind the numbers
SIZE: Final = RECORDS_AT + SLOTS * 2 * RECORD_MAX  # nearly all of it is never touched, and takes no memory
ABSENT: Final = -1  # instead of a number of connections: accepts none
SILENT_S: Final = 0.75  # a frontend that has not beaten for so long is not waited for
READS_MAX: Final = 100

_HEADER: Final = struct.Struct("<QII")  # serial, size of the payload, its checksum with the serial
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_NUMBERS: Final = 1 + 2 * SLOTS  # slots ever claimed; by slot connections, and when it last beat, ns


class Record(NamedTuple):
    alive: bool  # its writer is
    payload: bytes


class Board:
    """One frontend's view. Claims a slot when it is made."""

    def __init__(self, descriptor: int | None = None) -> None:
        """`descriptor` is of the shared memory; without one there is nobody to share with. Raises OSError."""
        if descriptor is None:
            self._file = os.memfd_create("tokenwire-board", os.MFD_CLOEXEC)
        else:  # an open file of our own, because locks belong to those
            self._file = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            with self._locked():
                if os.fstat(self._file).st_size < SIZE:
                    os.ftruncate(self._file, SIZE)
                self._memory = mmap.mmap(self._file, RECORDS_AT)
                self._numbers = memoryview(self._memory).cast("q")[:_NUMBERS]
                self.slot: Final = self._claim()
                self._numbers[0] = max(self._numbers[0], self.slot + 1)
        except BaseException:
            os.close(self._file)
            raise
        self._serial, self.inherited = self._read(self.slot)
        self._written = self.inherited
        self.connections = ABSENT

    def close(self) -> None:
        """Gives the slot up. The record stays."""
        self.connections = ABSENT
        self._numbers.release()
        self._memory.close()
        os.close(self._file)

    # ------------------------------------------------------------------------------------------------ records

    def write(self, payload: bytes) -> None:
        """Puts the record in the place of the one before the last. Raises ValueError if it is too large."""
        if payload == self._written:
            return
        if len(payload) > RECORD_MAX - _HEADER.size:
            raise ValueError(f"a record of {len(payload)} bytes, at most {RECORD_MAX - _HEADER.size}")
        self._serial += 1
        header = _HEADER.pack(self._serial, len(payload), _checksum(self._serial, payload))
        os.pwrite(self._file, header + payload, _place(self.slot, self._serial))
        self._written = payload

    def records(self) -> list[Record]:
        """Of all that have ever claimed a slot."""
        slots = range(self._numbers[0])
        return [Record(slot == self.slot or self._is_locked(slot), self._read(slot)[1]) for slot in slots]

    def _read(self, slot: int) -> tuple[int, bytes]:
        """Serial and payload of the newest whole record; 0 and nothing if there is none. One that is being written over
        while it is read is no longer the newest."""
        for _ in range(READS_MAX):
            headers = [_HEADER.unpack(os.pread(self._file, _HEADER.size, _place(slot, half))) for half in range(2)]
            for serial, size, checksum in sorted(headers, reverse=True):
                payload = os.pread(self._file, min(size, RECORD_MAX), _place(slot, serial) + _HEADER.size)
                if serial and checksum == _checksum(serial, payload):
                    return serial, payload
            if headers[0][0] == headers[1][0] == 0:
                return 0, b""
        return 0, b""  # its writer was killed while it wrote the first one

    # ------------------------------------------------------------------------------------------------ connections

    @property
    def connections(self) -> int:
        """How many this frontend has, for the others to see; ABSENT while it accepts none."""
        return self._numbers[1 + self.slot]

    @connections.setter
    def connections(self, count: int) -> None:
        self._numbers[1 + self.slot] = count

    def beat(self) -> None:
        """This frontend's loop turns."""
        self._numbers[1 + SLOTS + self.slot] = time.monotonic_ns()

    def least(self) -> int:
        """The fewest connections that one of the frontends has which would take another."""
        used = self._numbers[0]
        since = time.monotonic_ns() - int(SILENT_S * 1e9)
        counts = self._numbers[1 : 1 + used].tolist()
        beats = self._numbers[1 + SLOTS : 1 + SLOTS + used].tolist()
        counts = [count for count, beat in zip(counts, beats, strict=True) if count != ABSENT and beat > since]
        return min(counts, default=0)

    # ------------------------------------------------------------------------------------------------ locks

    def _claim(self) -> int:
        """The first slot that nobody holds."""
        for slot in range(SLOTS):
            try:
                fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, _place(slot, 0)))
            except BlockingIOError:
                continue
            return slot
        raise OSError(errno.ENOSPC, f"{SLOTS} frontends are running already")

    def _is_locked(self, slot: int) -> bool:
        found = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, _place(slot, 0)))
        kind: int = _FLOCK.unpack(found)[0]
        return kind != fcntl.F_UNLCK

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One frontend at a time. The lock is held for microseconds, and a killed holder gives it up."""
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW, _lock(fcntl.F_WRLCK, 0))
        try:
            yield
        finally:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _lock(fcntl.F_UNLCK, 0))


def _place(slot: int, serial: int) -> int:
    """Where a record lies: by turns in the two halves of its slot."""
    return RECORDS_AT + (2 * slot + serial % 2) * RECORD_MAX


def _checksum(serial: int, payload: bytes) -> int:
    return crc32(payload, serial & 0xFFFF_FFFF)


def _lock(kind: int, start: int) -> bytes:
    """Of one byte, which needs not be there."""
    return _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0)
