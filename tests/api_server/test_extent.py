"""How far a body goes, whatever is in it, behind it, and however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.extent import LINE_MAX, SLICE, Chunked, Sized

TRICKY = st.lists(st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nabcde\r\n", b"x", b"x" * SLICE]), min_size=1).map(
    b"".join
)
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"A: 0\r\nB: c\r\n"])


def taken(extent: Sized | Chunked, data: bytes, cuts: list[int]) -> bytes:
    """All that it gives out, of data that comes in pieces."""
    unread, found = bytearray(), b""
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        unread += data[start:stop]
        while size := extent.take(unread):
            found += unread[:size]
            del unread[:size]
    return found


@given(st.lists(TRICKY), st.sampled_from(["%x", "%X", "0%x;a=b"]), TRAILERS, TRICKY, st.data())
def test_a_body_in_chunks_ends_with_its_last_one(
    pieces: list[bytes], size: str, trailers: bytes, behind: bytes, draw: st.DataObject
) -> None:
    chunks = b"".join((size % len(piece)).encode() + b"\r\n" + piece + b"\r\n" for piece in pieces)
    body = chunks + b"0\r\n" + trailers + b"\r\n"
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(body + behind)), max_size=5)))
    assert taken(Chunked(), body + behind, cuts) == body
    assert taken(Sized(len(body)), body + behind, cuts) == body


def test_no_more_than_a_slice_at_a_time() -> None:
    assert Chunked().take(bytearray(b"%x\r\n" % (4 * SLICE) + b"x" * 4 * SLICE)) == SLICE


@pytest.mark.parametrize(
    "line", [b"x\r\n", b"-1\r\n", b"\r\n", b"1\n\r\n", b"1" * 17 + b"\r\n", b"1;" + b"x" * LINE_MAX]
)
def test_what_is_no_chunk_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"no chunk|without an end"):
        Chunked().take(bytearray(line))
