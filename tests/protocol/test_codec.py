import random
from collections.abc import Callable

import msgspec
import pytest

from protocol import messages as wire
from protocol.codec import BadMessage, decode_command, decode_event, encode
from tests.protocol.samples import COMMANDS, EVENTS

Decode = Callable[[bytes], object]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda message: type(message).__name__)
def test_commands_survive_the_wire(command: wire.Command) -> None:
    assert decode_command(encode(command)) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda message: type(message).__name__)
def test_events_survive_the_wire(event: wire.Event) -> None:
    assert decode_event(encode(event)) == event


def test_every_type_has_a_sample() -> None:
    assert {type(message) for message in COMMANDS} == set(wire.Command.__args__)
    assert {type(message) for message in EVENTS} == set(wire.Event.__args__)


def test_commands_are_no_events() -> None:
    for event in EVENTS:
        with pytest.raises(BadMessage):
            decode_command(encode(event))


@pytest.mark.parametrize("message", [*COMMANDS, *EVENTS], ids=lambda message: type(message).__name__)
def test_a_newer_peer_may_add_fields(message: wire.Command | wire.Event) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    decode: Decode = decode_command if isinstance(message, tuple(wire.Command.__args__)) else decode_event
    missing = len(msgspec.structs.fields(message)) + 1 - len(fields)
    assert missing >= 0
    padded = fields + [field.default for field in msgspec.structs.fields(message)][-missing or len(fields) :]
    assert decode(msgspec.msgpack.encode([*padded, "a field of tomorrow"])) == message


def mutate(frame: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    mutated = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(mutated) + 1)
        match rng.randrange(5):
            case 0 if place < len(mutated):
                mutated[place] = rng.randrange(256)
            case 1:
                del mutated[place : place + rng.randint(1, 8)]
            case 2:
                mutated[place:place] = rng.randbytes(rng.randint(1, 8))
            case 3:
                mutated[place:place] = mutated[place : place + rng.randint(1, 16)]
            case _ if place < len(mutated):
                mutated[place] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def test_hundred_thousand_mutations_raise_nothing_else() -> None:
    rng = random.Random(1)
    frames = [(encode(command), decode_command) for command in COMMANDS]
    frames += [(encode(event), decode_event) for event in EVENTS]
    refused = 0
    for _ in range(100_000):
        frame, decode = rng.choice(frames)
        try:
            decode(mutate(frame, rng))
        except BadMessage:
            refused += 1
    assert 50_000 < refused < 100_000


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x93\x02",
        b"\x92\x02\xa2\xff\xfe",
        b"\x91" * 5000,
        b"\x93\x03\xdd\xff\xff\xff\xff",
        b"\xc0",
        b"\x2a",
    ],
)
def test_garbage_is_a_bad_message(frame: bytes) -> None:
    for decode in (decode_command, decode_event):
        with pytest.raises(BadMessage):
            decode(frame)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 2.1, True, "1"])
def test_numbers_out_of_range_do_not_decode(value: object) -> None:
    generate = msgspec.msgpack.decode(encode(COMMANDS[1]))
    generate[5][1] = value  # sampling.temperature
    with pytest.raises(BadMessage, match=r"temperature|Expected"):
        decode_command(msgspec.msgpack.encode(generate))
