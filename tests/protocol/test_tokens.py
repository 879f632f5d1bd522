import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tokens import pack, unpack


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_what_is_packed_comes_out_again(tokens: list[int]) -> None:
    data = pack(tokens)
    assert data == b"".join(token.to_bytes(4, "little") for token in tokens)
    assert unpack(data).tolist() == tokens


@pytest.mark.parametrize("token", [-1, 2**32])
def test_what_has_no_place_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        pack([1, token])


def test_half_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        unpack(b"12345")
