"""Reported log-probabilities against log_softmax in fp64."""

import pytest
import torch

from engine_core.sampling.sampler import Sampler
from tests.engine_core.sampling.requests import EOS, params, request, sampler_for

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [15, 1000, 32_000])
def test_logprobs_are_those_of_the_raw_logits(vocab_size: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(10)) * 3).to(dtype)
    heavy = {"temperature": 0.4, "logit_bias": ((3, 100.0),), "repetition_penalty": 2.0, "top_k": 2}
    requests = [
        request(params(**heavy, logprobs=5), 0),
        request(params(temperature=0.0, logprobs=0), 1),
        request(params(), 2),
        request(params(logprobs=20), 3),
        request(params(temperature=0.0, logprobs=1), 4),
        request(params(temperature=0.0), 5),
    ]
    sampled = sampler_for(requests, vocab_size).sample(logits, requests)
    reference = logits.double().log_softmax(-1)
    assert sampled.logprobs is not None
    for row, (made, entry) in enumerate(zip(requests, sampled.logprobs, strict=True)):
        if made.sampling.logprobs is None:
            assert entry is None
            continue
        assert entry is not None
        token = int(sampled.tokens[row])
        top = min(made.sampling.logprobs, vocab_size)
        best = sorted(range(vocab_size), key=lambda id: (-reference[row, id].item(), id))[:top]
        assert entry.logprob == pytest.approx(reference[row, token].item(), abs=2e-6)
        assert entry.top_ids == best
        assert entry.top_logprobs == pytest.approx(reference[row, best].tolist(), abs=2e-6)
    assert int(sampled.tokens[0]) == 3
    assert (first := sampled.logprobs[4]) is not None
    assert first.top_ids == [int(sampled.tokens[4])]
    assert first.top_logprobs == [first.logprob]


def test_a_logprob_is_never_infinite() -> None:
    logits = torch.tensor([[0.0, -torch.inf, torch.nan], [torch.inf, 0.0, 0.0], [torch.nan] * 3])
    found = Sampler(3, 4, [EOS], CPU).logprobs(logits, torch.tensor([0, 1, 2]), [3, 2, 2])
    assert (found[0].logprob, found[0].top_ids, found[0].top_logprobs) == (0.0, [0], [0.0])
    assert (found[1].logprob, found[1].top_ids, found[1].top_logprobs) == (-9999.0, [0, 1], [-9999.0, -9999.0])
    assert (found[2].logprob, found[2].top_ids) == (-9999.0, [])
