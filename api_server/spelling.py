"""Reads a tokenizer's decoder and says, where that is possible, which bytes each of its tokens stands for.

Possible are byte-level decoders, and sentencepiece's as they are written in tokenizer.json: Metaspace, or a sequence of
Replace, ByteFallback, Fuse and a Strip at the start. What the decoder does with invalid bytes is not taken over: a text
that is shown while it grows can't take back what it has shown.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer


class Spelling(NamedTuple):
    """A token's bytes in the middle of a text, and at its start, where that differs."""

    spell: Callable[[str], bytes]
    first: Callable[[str], bytes] | None = None


def spelling_of(tokenizer: Tokenizer) -> Spelling | None:
    """None for a decoder whose tokens are no fixed bytes."""
    if tokenizer.decoder is None:
        return None
    decoder = msgspec.json.decode(tokenizer.decoder.__getstate__())
    stages = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [stage["type"] for stage in stages]
    if kinds == ["ByteLevel"]:
        return Spelling(_byte_level())
    if kinds == ["Metaspace"]:
        return _metaspace(stages[0])
    return _sentencepiece(stages)


def _byte_level() -> Callable[[str], bytes]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on. A token with any
    other character (an added one, with a space in it) is plain text."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

    def spell(token: str) -> bytes:
        try:
            return bytes([alphabet[character] for character in token])
        except KeyError:
            return token.encode()

    return spell


def _metaspace(stage: dict[str, Any]) -> Spelling:
    mark = str(stage["replacement"])

    def spell(token: str) -> bytes:
        return token.replace(mark, " ").encode()

    if stage["prepend_scheme"] == "never":
        return Spelling(spell)
    return Spelling(spell, lambda token: token.replace(mark, "").encode())


def _sentencepiece(stages: list[dict[str, Any]]) -> Spelling | None:
    replacements: list[tuple[str, str]] = []
    fallback = False
    strip = False
    for position, stage in enumerate(stages):
        match stage:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if not strip:
                replacements.append((pattern, content))
            case {"type": "ByteFallback"} if not strip:
                fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if {"type": "Fuse"} in stages[:position]:
                strip = True
            case _:
                return None

    def spell(token: str) -> bytes:
        for pattern, content in replacements:
            token = token.replace(pattern, content)
        if fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.encode()

    return Spelling(spell, (lambda token: spell(token).removeprefix(b" ")) if strip else None)
