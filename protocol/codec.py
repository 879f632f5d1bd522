"""Messages to bytes and back: one encoder and two typed decoders, made once. Never pickle."""

from typing import Final

import msgspec

from protocol.messages import Command, Event


class BadMessage(ValueError):
    """The bytes are not a message of this direction."""


# msgspec raises outside its own hierarchy for invalid UTF-8 (UnicodeDecodeError, a ValueError) and deep nesting.
_DECODE_ERRORS: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_encoder: Final = msgspec.msgpack.Encoder()
_command_decoder: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)
_event_decoder: Final[msgspec.msgpack.Decoder[Event]] = msgspec.msgpack.Decoder(Event)


def encode(message: Command | Event) -> bytes:
    """One msgpack frame."""
    return _encoder.encode(message)


def decode_command(frame: bytes | memoryview) -> Command:
    """Raises BadMessage for anything that is not exactly one command."""
    try:
        return _command_decoder.decode(frame)
    except _DECODE_ERRORS as error:
        raise BadMessage(str(error)) from error


def decode_event(frame: bytes | memoryview) -> Event:
    """Raises BadMessage for anything that is not exactly one event."""
    try:
        return _event_decoder.decode(frame)
    except _DECODE_ERRORS as error:
        raise BadMessage(str(error)) from error
