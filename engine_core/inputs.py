"""From a batch to the tensors of a step, in numpy over one block table that lives as long as the engine.

No loop over tokens; the loops over rows copy what changed: a prompt's ids, or one id, and the blocks that are new.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_core.attention import AttentionPlan
from engine_core.batch import Batch, Row

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LateTokens:
    """Input ids that the host does not know yet, because the step that samples them may still run: token `at[i]` of the
    batch is what was last sampled for slot `slots[i]`. Both [L] int64, on the device."""

    at: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """Prompt tokens whose log probabilities are wanted, row by row of the batch: `tokens[i]`, given all up to and with
    token `at[i]` of the batch. Both [S] int64, on the device."""

    at: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    """All that the model needs for a step of T tokens, R of which yield a token."""

    input_ids: torch.Tensor  # [T] int64; 0 where a late token goes
    plan: AttentionPlan
    logits_rows: torch.Tensor  # [R] int64: the last token of each row that samples
    slots: torch.Tensor  # [R] int64: whose they are
    late: LateTokens | None
    targets: Targets | None


class InputBuilder:
    """Assembles steps. A request's row in the block table is its slot."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._table = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self._filled = [0] * max_num_seqs  # blocks of each row that are in the table

    def build(self, batch: Batch) -> StepInputs:
        """The batch must hold at least one row. A row whose last token is not in its request's list yet (a decode
        behind a step in flight) has it as a late token."""
        for request in batch.admitted:
            self._table[request.slot, : self._filled[request.slot]] = 0
            self._filled[request.slot] = 0
        rows = batch.rows
        self._copy_new_blocks(rows)

        count = len(rows)
        owners = np.fromiter((row.request.slot for row in rows), np.int64, count)
        starts = np.fromiter((row.start for row in rows), np.int64, count)
        counts = np.fromiter((row.count for row in rows), np.int64, count)
        query_starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(counts, out=query_starts[1:])
        kv_lens = starts + counts
        total = int(query_starts[-1])

        if total == count:
            positions, token_owners = starts, owners
        else:
            positions = np.arange(total, dtype=np.int64) + np.repeat(starts - query_starts[:-1], counts)
            token_owners = np.repeat(owners, counts)
        blocks = self._table[token_owners, positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size

        longest = int(kv_lens.max())
        plan = AttentionPlan(
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            query_starts=self._tensor(query_starts.astype(np.int32)),
            kv_lens=self._tensor(kv_lens.astype(np.int32)),
            block_table=self._tensor(self._table[owners, : -(-longest // self._block_size)]),
            max_query_len=int(counts.max()),
            max_kv_len=longest,
        )
        samples = np.fromiter((row.samples for row in rows), np.bool_, count)
        begins = query_starts.tolist()
        ids, late = self._input_ids(rows, begins)
        return StepInputs(
            input_ids=self._tensor(ids),
            plan=plan,
            logits_rows=self._tensor(query_starts[1:][samples] - 1),
            slots=self._tensor(owners[samples]),
            late=late,
            targets=self._targets(rows, begins),
        )

    def _targets(self, rows: Sequence[Row], begins: Sequence[int]) -> Targets | None:
        at: list[IntArray] = []
        tokens: list[int] = []
        for row, begin in zip(rows, begins, strict=False):
            if wanted := row.targets:
                first = begin + wanted.start - 1 - row.start
                at.append(np.arange(first, first + len(wanted), dtype=np.int64))
                tokens += row.request.tokens[wanted.start : wanted.stop]
        if not at:
            return None
        return Targets(self._tensor(np.concatenate(at)), self._tensor(np.array(tokens, dtype=np.int64)))

    def _copy_new_blocks(self, rows: Sequence[Row]) -> None:
        table, filled = self._table, self._filled
        for row in rows:
            request = row.request
            slot, blocks = request.slot, request.blocks
            have = filled[slot]
            if have != len(blocks):
                table[slot, have : len(blocks)] = blocks[have:]
                filled[slot] = len(blocks)

    def _input_ids(self, rows: Sequence[Row], begins: Sequence[int]) -> tuple[IntArray, LateTokens | None]:
        ids = np.zeros(begins[-1], dtype=np.int64)
        late_at: list[int] = []
        late_slots: list[int] = []
        for row, begin in zip(rows, begins, strict=False):
            tokens = row.request.tokens
            known = min(row.end, len(tokens)) - row.start
            if known == 1:
                ids[begin] = tokens[row.start]
            elif known > 1:
                ids[begin : begin + known] = tokens[row.start : row.start + known]
            if known < row.count:
                late_at.append(begin + known)
                late_slots.append(row.request.slot)
        if not late_at:
            return ids, None
        return ids, LateTokens(self._tensor(np.array(late_at)), self._tensor(np.array(late_slots)))

    def _tensor(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor
