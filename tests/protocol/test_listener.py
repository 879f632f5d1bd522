"""What connections inherit from a bounded listener."""

import contextlib
import socket

import pytest

from protocol.listener import SILENT_S, UNANSWERED, bound

SWALLOWED_MAX = 100_000  # by default the kernel takes more than two megabytes


def swallowed(connection: socket.socket) -> int:
    """Bytes that it takes in small writes before it would wait."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while size < SWALLOWED_MAX:
            size += connection.send(b"x" * 250)
    return size


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_kernel_keeps_little_for_a_reader_that_takes_nothing(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"there is no {address} here")
    with listener:
        bound(listener)
        with socket.socket(family) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                assert 0 < swallowed(connection) < SWALLOWED_MAX
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                found = [connection.getsockopt(socket.IPPROTO_TCP, option) for option in options]
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert found == [SILENT_S, SILENT_S, UNANSWERED]


def test_a_unix_socket_is_no_trouble() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        bound(listener)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 200_000
