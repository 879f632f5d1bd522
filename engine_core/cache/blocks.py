"""Who owns which block of the KV cache. Knows block numbers and reference counts, no tensors and no tokens."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

SCRATCH: Final = 0  # padding is written there; no sequence ever owns it


class BlockPool:
    """Blocks 1 … num_blocks - 1, each free or owned by one or more sequences.

    A free block may still hold a sealed prefix that a later sequence can share again. Such blocks are reused last, the
    one that is free the longest first; `on_evict` is told when the content of one is given up.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[int], None] | None = None) -> None:
        if num_blocks < 2:
            raise ValueError("a pool needs a block beside the scratch block")
        self.num_blocks = num_blocks - 1
        self._on_evict = on_evict
        self._references = [0] * num_blocks
        self._sealed = [False] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))  # next victim first

    @property
    def available(self) -> int:
        """Blocks that `allocate` can hand out, sealed ones included."""
        return len(self._free)

    @property
    def used(self) -> int:
        return self.num_blocks - len(self._free)

    def references(self, block: int) -> int:
        return self._references[block]

    def is_free(self, block: int) -> bool:
        return block in self._free

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with nothing in them. The caller has looked at `available` first."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        blocks = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            if self._sealed[block]:
                self._sealed[block] = False
                if self._on_evict is not None:
                    self._on_evict(block)
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def seal(self, block: int) -> None:
        """The content of this owned block is worth keeping when its last owner leaves."""
        self._sealed[block] = True

    def release(self, blocks: list[int]) -> None:
        """One owner less for each. The tail of a sequence is given up before its head, which more sequences share."""
        for block in reversed(blocks):
            if self._references[block] <= 0:
                raise ValueError(f"block {block} is released twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if not self._sealed[block]:
                    self._free.move_to_end(block, last=False)
