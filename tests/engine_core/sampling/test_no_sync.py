"""A GPU's sampler must not wait for the GPU. On the meta device tensors have no values, so whatever would ask for one
(`if`, `.item()`, `nonzero`, a copy to the host) raises: what runs there to its end never asks."""

import pytest
import torch

from engine_core.sampling.sampler import Sampler
from protocol.sampling import SamplingParams
from tests.engine_core.sampling.requests import EOS, params, request

META = torch.device("meta")
VOCAB = 5000
KINDS = {
    "greedy": [params(temperature=0.0)],
    "whole": [params(temperature=0.9)],
    "truncated": [params(top_k=40), params(top_p=0.9), params(min_p=0.1), params(top_k=7, top_p=0.5, min_p=0.01)],
    "penalized": [params(repetition_penalty=1.2, presence_penalty=0.5), params(temperature=0.0, frequency_penalty=1.0)],
    "edited": [
        params(logit_bias=((5, 2.0),), min_tokens=9, stop_token_ids=(7,)),
        params(allowed_token_ids=(1, 2, 3), bad_words=((1,), (2, 3))),
    ],
}
KINDS["mixed"] = [sampling for kind in KINDS.values() for sampling in kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_asks_the_device(kind: str, dtype: torch.dtype) -> None:
    asked: list[SamplingParams] = KINDS[kind]
    requests = [request(sampling, slot, prompt=(1, 2, 3), out=(4, 1)) for slot, sampling in enumerate(asked)]
    sampler = Sampler(VOCAB, len(requests), [EOS], META)
    for each in requests:
        sampler.admit(each)
    sampled = sampler.sample(torch.empty(len(requests), VOCAB, dtype=dtype, device=META), requests)
    assert sampled.tokens.shape == (len(requests),)
    assert sampled.tokens.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_are_scored_without_asking(dtype: torch.dtype) -> None:
    sampler = Sampler(VOCAB, 4, [EOS], META)
    logits = torch.empty(11, VOCAB, dtype=dtype, device=META)
    scored = sampler.score(logits, torch.empty(11, dtype=torch.int64, device=META), 5)
    assert scored.logprobs.shape == scored.ranks.shape == (11,)
    assert scored.top_ids.shape == scored.top_logprobs.shape == (11, 5)


def test_the_meta_device_would_tell() -> None:
    with pytest.raises(RuntimeError):
        bool(torch.empty(3, device=META).isfinite().all())
