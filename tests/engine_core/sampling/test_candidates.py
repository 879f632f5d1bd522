"""The order of candidates."""

import torch

from engine_core.sampling.candidates import ranked, widest


def test_candidates_are_the_highest_in_order_of_score_then_id() -> None:
    scores = torch.randint(-40, 40, (9, 1000), generator=torch.Generator().manual_seed(12)).float() / 8
    scores[0, :3] = torch.tensor([-0.0, 0.0, -torch.inf])
    for count in (1, 5, 64, 300, 1000, 5000):
        values, ids = ranked(*widest(scores, count))
        for row in range(9):
            best = sorted(range(1000), key=lambda id: (-scores[row, id].item(), id))[:count]
            assert torch.equal(values[row], scores[row, best])
            inside = values[row] > values[row, -1]  # which of the last equals are there is not promised
            assert ids[row][inside].tolist() == torch.tensor(best)[inside].tolist()
    values, ids = ranked(*widest(scores, 3, torch.tensor([4, 7])))
    assert torch.equal(values, scores[[4, 7]].topk(3).values)
