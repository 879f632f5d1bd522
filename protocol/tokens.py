"""Token ids as bytes, four each, the lowest first: how prompts travel.

A list of them would be decoded number by number, which holds up the step loop for ten milliseconds if a prompt has a
quarter of a million tokens; bytes are copied.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Final

TOKEN_BYTES: Final = 4


def pack(tokens: Sequence[int]) -> bytes:
    """Ids below 2^32."""
    return _swapped(array("I", tokens)).tobytes()


def unpack(data: bytes) -> "array[int]":
    """Of four-byte items. Raises ValueError if the length is no multiple of TOKEN_BYTES."""
    return _swapped(array("I", data))


def _swapped(tokens: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens
