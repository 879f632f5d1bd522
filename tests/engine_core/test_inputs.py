import torch

from engine_core.batch import Batch, Row
from engine_core.inputs import InputBuilder, StepInputs
from engine_core.request import Request
from tests.engine_core.driver import CPU, make_request

BLOCK = 4


def request(tokens: list[int], slot: int, blocks: list[int]) -> Request:
    made = make_request(tokens, slot)
    made.slot = slot
    made.blocks = blocks
    return made


def builder() -> InputBuilder:
    return InputBuilder(max_num_seqs=4, max_model_len=22, block_size=BLOCK, device=CPU)


def lists(step: StepInputs) -> dict[str, object]:
    tensors = {
        "ids": step.input_ids,
        "positions": step.plan.positions,
        "slots": step.plan.slots,
        "query_starts": step.plan.query_starts,
        "kv_lens": step.plan.kv_lens,
        "block_table": step.plan.block_table,
        "logits_rows": step.logits_rows,
        "owners": step.slots,
    }
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_a_mixed_batch() -> None:
    prefill = request([10, 11, 12, 13, 14, 15, 16], slot=2, blocks=[5, 9])
    decode = request([20, 21, 22], slot=0, blocks=[3])
    last_chunk = request(list(range(30, 40)), slot=3, blocks=[7, 1, 8])
    batch = Batch(
        [Row(prefill, 3, 3, False), Row(decode, 2, 1, True), Row(last_chunk, 8, 2, True)], [prefill, decode, last_chunk]
    )
    step = builder().build(batch)
    assert lists(step) == {
        "ids": [13, 14, 15, 22, 38, 39],
        "positions": [3, 4, 5, 2, 8, 9],
        "slots": [5 * 4 + 3, 9 * 4, 9 * 4 + 1, 3 * 4 + 2, 8 * 4, 8 * 4 + 1],
        "query_starts": [0, 3, 4, 6],
        "kv_lens": [6, 3, 10],
        "block_table": [[5, 9, 0], [3, 0, 0], [7, 1, 8]],
        "logits_rows": [3, 5],
        "owners": [0, 3],
    }
    assert (step.plan.max_query_len, step.plan.max_kv_len, step.late) == (3, 10, None)
    assert step.input_ids.dtype == step.plan.positions.dtype == step.plan.slots.dtype == torch.int64
    assert step.plan.query_starts.dtype == step.plan.kv_lens.dtype == step.plan.block_table.dtype == torch.int32


def test_new_blocks_are_appended_and_a_new_owner_starts_afresh() -> None:
    inputs = builder()
    first = request(list(range(9)), slot=1, blocks=[4, 6, 2])
    inputs.build(Batch([Row(first, 0, 9, True)], [first]))
    first.tokens.extend([1] * 4)
    first.blocks.append(11)
    step = inputs.build(Batch([Row(first, 12, 1, True)]))
    assert lists(step)["block_table"] == [[4, 6, 2, 11]]
    assert lists(step)["slots"] == [11 * 4]

    second = request(list(range(13)), slot=1, blocks=[8])
    step = inputs.build(Batch([Row(second, 0, 4, False)], [second]))
    assert lists(step)["block_table"] == [[8]]
    second.blocks.extend([12, 13])
    assert lists(inputs.build(Batch([Row(second, 4, 6, False)])))["block_table"] == [[8, 12, 13]]
    second.blocks.append(14)
    assert lists(inputs.build(Batch([Row(second, 10, 3, True)])))["block_table"] == [[8, 12, 13, 14]]


def test_a_token_in_flight_is_late() -> None:
    waiting = request([1, 2, 3], slot=2, blocks=[5])
    known = request([4, 5], slot=1, blocks=[6])
    step = builder().build(Batch([Row(known, 1, 1, True), Row(waiting, 3, 1, True)], [waiting, known]))
    assert lists(step)["ids"] == [5, 0]
    assert lists(step)["positions"] == [1, 3]
    assert step.late is not None
    assert step.late.at.tolist() == [1]
    assert step.late.slots.tolist() == [2]


def test_prompt_tokens_are_scored_by_the_positions_before_them() -> None:
    chunk = request(list(range(10, 18)), slot=0, blocks=[1, 2])
    decode = request([20, 21, 22], slot=1, blocks=[3])
    last_chunk = request(list(range(30, 38)), slot=2, blocks=[4, 5])
    rows = [
        Row(chunk, 2, 3, False, targets=range(4, 6)),
        Row(decode, 2, 1, True),
        Row(last_chunk, 4, 4, True, targets=range(5, 8)),
    ]
    step = builder().build(Batch(rows, [chunk, decode, last_chunk]))
    assert step.targets is not None
    assert step.targets.at.tolist() == [1, 2, 4, 5, 6]
    assert step.targets.tokens.tolist() == [14, 15, 35, 36, 37]
    assert step.input_ids[step.targets.at].tolist() == [13, 14, 34, 35, 36]
    assert step.logits_rows.tolist() == [3, 7]
    assert builder().build(Batch([Row(decode, 2, 1, True)], [decode])).targets is None


def test_a_step_that_samples_nothing() -> None:
    chunked = request(list(range(8)), slot=0, blocks=[1])
    step = builder().build(Batch([Row(chunked, 0, 4, False)], [chunked]))
    assert step.logits_rows.shape == step.slots.shape == (0,)
