"""Log probabilities of prompt positions against log_softmax in fp64, and how they are cut up for the wire."""

import pytest
import torch

from engine_core.sampling.prompt import PORTION_NUMBERS, Scored
from engine_core.sampling.sampler import Sampler
from tests.engine_core.sampling.requests import EOS

CPU = torch.device("cpu")


def score(logits: torch.Tensor, tokens: list[int], top: int, seqs: int = 4) -> Scored:
    return Sampler(logits.shape[1], seqs, [EOS], CPU).score(logits, torch.tensor(tokens), top)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [15, 100, 32_000])
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_more_positions_than_sequences(rows: int, vocab_size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(11)) * 3).to(dtype)
    tokens = [(7 * row) % vocab_size for row in range(rows)]
    reference = logits.double().log_softmax(-1)
    (portion,) = score(logits, tokens, 20).portions(0, range(5, 5 + rows), 20)
    assert (portion.pos, portion.end) == (5, 5 + rows)
    for row, (token, entry) in enumerate(zip(tokens, portion.entries(20), strict=True)):
        own = reference[row, token].item()
        assert entry.logprob == pytest.approx(own, abs=2e-6)
        assert entry.rank == int((logits[row] > logits[row, token]).sum()) + 1
        best = reference[row].sort(descending=True, stable=True).indices[:20].tolist()
        assert list(entry.top_ids) == best
        assert list(entry.top_logprobs) == pytest.approx(reference[row, best].tolist(), abs=2e-6)


def test_equals_share_a_rank_and_come_in_order_of_their_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 1.0]])
    (portion,) = score(logits.expand(6, -1), list(range(6)), 0).portions(0, range(1, 7), 0)
    assert [entry.rank for entry in portion.entries(0)] == [5, 1, 1, 4, 1, 5]
    (entry,) = score(logits, [0], 4).portions(0, range(1, 2), 4)[0].entries(4)
    assert entry.top_ids == (1, 2, 4, 3)


def test_what_cannot_be_is_no_alternative() -> None:
    logits = torch.tensor([[0.0, -torch.inf, torch.nan, -1.0], [torch.inf, 0.0, 0.0, 0.0], [torch.nan] * 4])
    impossible, infinite, empty = score(logits, [2, 1, 0], 4).portions(0, range(1, 4), 4)[0].entries(4)
    assert (impossible.logprob, impossible.rank, impossible.top_ids) == (-9999.0, 3, (0, 3))
    assert (infinite.logprob, infinite.rank, infinite.top_logprobs) == (-9999.0, 2, (-9999.0,) * 4)
    assert (empty.logprob, empty.rank, empty.top_ids) == (-9999.0, 1, ())


@pytest.mark.parametrize("top", [0, 20])
def test_long_prompts_travel_in_portions(top: int) -> None:
    count = 6000
    scored = score(torch.randn(count, 30), [row % 30 for row in range(count)], 20, seqs=512)
    portions = scored.portions(100, range(1, count - 99), top)
    assert len(portions) > 1
    assert all(portion.numbers <= PORTION_NUMBERS for portion in portions)
    place = 1
    for portion in portions:
        assert portion.pos == place
        place = portion.end
    assert place == count - 99
    entries = [entry for portion in portions for entry in portion.entries(20)]
    assert [entry.logprob for entry in entries] == scored.logprobs[100:].tolist()
    assert [entry.rank for entry in entries] == scored.ranks[100:].tolist()
    assert all(len(entry.top_ids) == top for entry in entries)
