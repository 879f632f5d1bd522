"""Which block holds which prefix: a chain of hashes, one per full block of tokens.

A block's hash covers its tokens, all tokens before them and the sequence's salt, so equal hashes mean equal keys and
values, and a prefix of one tenant is never found by another. Knows nothing of who owns a block.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Final

HASH_BYTES: Final = 16


def extend_chain(chain: list[bytes], tokens: "array[int]", block_size: int, salt: bytes, full_blocks: int) -> None:
    """Makes `chain` hold the hashes of the first `full_blocks` blocks of `tokens`."""
    parent = chain[-1] if chain else hashlib.blake2b(salt, digest_size=HASH_BYTES, person=b"tokenwire-prefix").digest()
    for block in range(len(chain), full_blocks):
        content = tokens[block * block_size : (block + 1) * block_size].tobytes()
        parent = hashlib.blake2b(parent + content, digest_size=HASH_BYTES).digest()
        chain.append(parent)


class PrefixIndex:
    """Sealed blocks by the hash of all tokens up to their end."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def match(self, chain: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of `chain`."""
        blocks = []
        for digest in chain:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, digest: bytes, block: int) -> bool:
        """False if another block holds this prefix already: then this one is nothing special."""
        if self._block_of.setdefault(digest, block) != block:
            return False
        self._hash_of[block] = digest
        return True

    def drop(self, block: int) -> None:
        """The block's content is being overwritten."""
        del self._block_of[self._hash_of.pop(block)]
