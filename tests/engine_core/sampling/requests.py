"""Requests as a sampler sees them: parameters, a slot and a history."""

from collections.abc import Sequence

import torch

from engine_core.request import Request
from engine_core.sampling.sampler import Sampler
from protocol.sampling import SamplingParams

EOS = 2


def params(**changes: object) -> SamplingParams:
    return SamplingParams(max_tokens=100_000, **changes)  # type: ignore[arg-type]


def request(
    sampling: SamplingParams,
    slot: int = 0,
    *,
    seed: int = 0,
    choice: int = 0,
    prompt: Sequence[int] = (1,),
    out: Sequence[int] = (),
) -> Request:
    made = Request(slot, f"r{slot}", prompt, sampling, seed=seed, choice=choice, out=out)
    made.slot = slot
    return made


def sampler_for(requests: Sequence[Request], vocab_size: int) -> Sampler:
    sampler = Sampler(vocab_size, max(request.slot for request in requests) + 1, [EOS], torch.device("cpu"))
    for each in requests:
        sampler.admit(each)
    return sampler


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    tokens: list[int] = sampler_for(requests, logits.shape[1]).sample(logits, requests).tokens.tolist()
    return tokens
