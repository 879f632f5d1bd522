"""Shared memory among real processes and open files: what is read is whole, and what a process leaves is not lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api_server.board import ABSENT, RECORD_MAX, RECORDS_AT, Board
from tests.api_server.live import until

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from api_server.board import Board
board = Board(int(sys.argv[1]))
board.beat()
board.connections = 1
number = int(board.inherited[:12] or b"0")
while True:
    number += 1
    board.write(b"%012d" % number * (1 + number % 700))
    if number % 1000 == 1:
        print(board.slot, flush=True)
"""


@pytest.fixture
def shared() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


@contextmanager
def writer(shared: int) -> Iterator["subprocess.Popen[str]"]:
    """A process that writes larger and larger numbers as fast as it can."""
    command = [sys.executable, "-c", WRITER, str(shared)]
    with subprocess.Popen(command, cwd=ROOT, pass_fds=[shared], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()  # it writes
            yield process
        finally:
            process.kill()


def number(payload: bytes) -> int:
    """Of a record that is whole."""
    found = payload[:12]
    assert payload == found * (1 + int(found) % 700)
    return int(found)


def test_each_has_a_place_and_sees_all(shared: int) -> None:
    first, second = Board(shared), Board(shared)
    assert (first.slot, second.slot) == (0, 1)
    first.write(b"one")
    second.write(b"two")
    first.write(b"one more")
    expected = [(True, b"one more"), (True, b"two")]
    assert first.records() == second.records() == expected
    first.close()
    assert second.records() == [(False, b"one more"), (True, b"two")]
    third = Board(shared)
    assert (third.slot, third.inherited) == (0, b"one more")
    assert third.records() == second.records() == expected
    third.write(b"three")
    assert second.records()[0] == (True, b"three")
    second.close()
    third.close()


def test_one_that_is_alone_shares_with_nobody() -> None:
    first, second = Board(), Board()
    first.write(b"mine")
    assert (first.slot, second.slot) == (0, 0)
    assert second.records() == [(True, b"")]
    first.close()
    second.close()


def test_a_record_has_a_limit(shared: int) -> None:
    board = Board(shared)
    with pytest.raises(ValueError, match="at most"):
        board.write(bytes(RECORD_MAX))
    board.write(bytes(RECORD_MAX - 16))
    assert len(board.records()[0].payload) == RECORD_MAX - 16
    board.close()


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_writer_killed_in_the_middle_leaves_the_record_before(shared: int, written: int) -> None:
    board = Board(shared)
    for count in range(written):
        board.write(b"%d" % count * 100)
    half = RECORDS_AT + (written + 1) % 2 * RECORD_MAX
    whole = os.pread(shared, RECORD_MAX, half)
    board.write(b"the last" * 1000)
    torn = os.pread(shared, 4096, half)
    os.pwrite(shared, torn + whole[4096:], half)
    before = b"%d" % (written - 1) * 100 if written else b""
    assert board.records() == [(True, before)]
    board.close()
    heir = Board(shared)
    assert heir.inherited == before
    for payload in (b"first", b"second", b"third"):
        heir.write(payload)
        assert heir.records() == [(True, payload)]
    heir.close()


def test_what_is_read_while_it_is_written_is_whole_and_never_goes_back(shared: int) -> None:
    reader = Board(shared)
    with writer(shared) as process:
        last = 0
        while last < 20_000:
            [_, (alive, payload)] = reader.records()
            assert alive
            assert number(payload) >= last
            last = number(payload)
        process.send_signal(signal.SIGKILL)
        process.wait()
    [_, (alive, payload)] = reader.records()
    assert not alive
    assert number(payload) >= last
    reader.close()


def test_the_heir_of_a_killed_one_goes_on_from_there(shared: int) -> None:
    reader = Board(shared)
    with writer(shared):
        until(lambda: number(reader.records()[1].payload) > 1000)
    before = number(reader.records()[1].payload)
    with writer(shared):
        until(lambda: reader.records()[1].alive and number(reader.records()[1].payload) > before)
        assert len(reader.records()) == 2
    reader.close()


def test_many_that_start_at_once_have_places_of_their_own(shared: int) -> None:
    command = [sys.executable, "-c", WRITER, str(shared)]
    started = [
        subprocess.Popen(command, cwd=ROOT, pass_fds=[shared], stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    places = []
    for process in started:
        assert process.stdout is not None
        places.append(int(process.stdout.readline()))
    assert sorted(places) == list(range(6))
    for process in started:
        process.kill()
        process.communicate()


def test_the_least_is_that_of_those_who_would_take_one(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 10**12
    monkeypatch.setattr("api_server.board.time.monotonic_ns", lambda: now_ns)
    boards = [Board(shared) for _ in range(3)]
    assert boards[0].least() == 0
    for board, count in zip(boards, (5, 3, 4), strict=True):
        board.connections = count
        board.beat()
    assert [board.least() for board in boards] == [3, 3, 3]
    boards[1].connections = ABSENT
    assert boards[0].least() == 4
    now_ns += 10**9
    boards[0].beat()
    assert boards[0].least() == 5
    for board in boards:
        board.close()
