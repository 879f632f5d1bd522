"""What the engine, the nursery and the followers tell each other: msgpack over Unix sockets that keep message borders.

Only processes of one engine speak this, all of one version. Masks are not in here: they lie in shared memory.
"""

import socket
import struct
from enum import IntEnum
from typing import Final

import msgspec
from msgspec import Struct

from protocol.sampling import Grammar

GRAMMAR_BYTES: Final = 192 << 10  # of a Compile, at most: a grammar has twice 64 KiB
# Of any other frame: tokens for a sequence come in portions, and orders for 4,000 sequences fit. To receive into a
# buffer that malloc maps, from 128 KiB on, takes five times as long.
FRAME_BYTES: Final = 96 << 10
TOKENS_PER_FRAME: Final = 8192
TICKET: Final = struct.Struct("<Q")  # behind the masks in the shared memory: the order that is being carried out
WORN_OUT: Final = 7  # exit code of a follower: too many lexer states have come together, and not from one sequence


# ------------------------------------------------------------------------------------------------ engine to nursery


class Setup(Struct, tag=1, frozen=True, array_like=True):
    """Comes first, together with a descriptor of the text of a tokenizer.json. `width` is that of the logits, `slots`
    how many sequences a follower may have to follow at a time."""

    width: int
    eos_token_ids: list[int]
    slots: int


class Fork(Struct, tag=2, frozen=True, array_like=True):
    """A new follower, under the engine's own number for it; it gets the descriptor that comes along as its socket."""

    follower: int


# ------------------------------------------------------------------------------------------------ nursery to engine


class Unusable(Struct, tag=3, frozen=True, array_like=True):
    """No grammar can be followed with this tokenizer. The nursery ends."""

    reason: str


class Ended(Struct, tag=4, frozen=True, array_like=True):
    """A follower is gone: with an exit code, or the negative number of a signal."""

    follower: int
    code: int


# ----------------------------------------------------------------------------------------------- engine to follower


class Compile(Struct, tag=5, frozen=True, array_like=True):
    """Comes first."""

    grammar: Grammar


class Order(Struct, frozen=True, array_like=True):
    """Further `tokens` of the sequence in `slot`, which is a new one if `fresh`. An order with a ticket is answered, as
    soon as the slot's mask is that of the sequence so far; 0 is none."""

    slot: int
    fresh: bool
    tokens: list[int]
    ticket: int = 0


class Orders(Struct, tag=6, frozen=True, array_like=True):
    """To be carried out one after another."""

    orders: list[Order]


class Release(Struct, tag=7, frozen=True, array_like=True):
    """The sequence in this slot is followed no more."""

    slot: int


# ----------------------------------------------------------------------------------------------- follower to engine


class Compiled(Struct, tag=8, frozen=True, array_like=True):
    """The grammar can be followed, and a descriptor of the shared memory comes along; or it is refused, and the
    follower ends. `row_bytes` is the width of one slot's mask there."""

    refusal: str
    row_bytes: int


class State(IntEnum):
    """What the sequence so far is to its grammar."""

    OPEN = 0  # the start of a sentence
    SENTENCE = 1  # a sentence, and the start of a longer one
    COMPLETE = 2  # a sentence that no token can prolong
    BROKEN = 3  # it can't be followed any further


class Answer(Struct, frozen=True, array_like=True):
    """To the order with that ticket. `message` says why a sequence is BROKEN."""

    ticket: int
    slot: int
    state: State
    message: str = ""


class Answers(Struct, tag=9, frozen=True, array_like=True):
    """In the order of the orders."""

    answers: list[Answer]


Message = Setup | Fork | Unusable | Ended | Compile | Orders | Release | Compiled | Answers

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """Raises msgspec.MsgspecError for what is no frame of ours."""
    return _decoder.decode(frame)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends; a frame sent into one comes whole out of the other, and an empty one is the end."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
