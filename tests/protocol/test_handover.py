"""The passage between two frontends: connections go through it whole, and a full one says so."""

import os
import socket

from protocol.handover import Passage, give, passage, take


def send(way: Passage, connection: socket.socket, *, kept: bool) -> bool:
    """Gives it away, as the process does that has it."""
    given = give(way.give, connection.fileno(), kept=kept)
    connection.close()
    return given


def test_a_connection_goes_through_open_and_in_order() -> None:
    with passage() as way:
        assert take(way.take) is None
        pairs = [socket.socketpair() for _ in range(3)]
        for number, (near, _) in enumerate(pairs):
            assert send(way, near, kept=number == 1)
        for number, (_, far) in enumerate(pairs):
            far.sendall(b"%d" % number)
            taken = take(way.take)
            assert taken is not None
            connection, kept = taken
            assert kept == (number == 1)
            assert connection.recv(9) == b"%d" % number
            connection.sendall(b"answer")
            assert far.recv(9) == b"answer"
            connection.close()
            assert far.recv(9) == b""
            far.close()
        assert take(way.take) is None


def test_what_nobody_took_is_there_for_the_next_one() -> None:
    with passage() as way:
        near, far = socket.socketpair()
        send(way, near, kept=True)
        later = socket.socket(fileno=os.dup(way.take.fileno()))
        taken = take(later)
        assert taken is not None
        taken[0].sendall(b"here")
        assert far.recv(9) == b"here"
        for each in (later, taken[0], far):
            each.close()


def test_a_full_passage_says_so_and_has_room_again() -> None:
    near, far = socket.socketpair()
    with passage() as way, near, far:
        count = 0
        while give(way.give, near.fileno(), kept=False):
            count += 1
        assert 10 < count < 100_000
        taken = take(way.take)
        assert taken is not None
        taken[0].close()
        assert give(way.give, near.fileno(), kept=False)
