"""Truncation and inverse CDF against transformers' own warpers."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine_core.sampling import draw as draw_module
from engine_core.sampling.candidates import padded
from engine_core.sampling.draw import Draws, draw
from protocol.sampling import SamplingParams
from tests.engine_core.sampling.requests import params, request, sample


def grid(logits: torch.Tensor, sampling: SamplingParams, points: int) -> NDArray[np.float64]:
    """The distribution that `draw` gives a row, read off at `points` evenly spaced uniforms."""
    scores = torch.nn.functional.pad(
        logits, (0, padded(len(logits)) - len(logits)), value=-torch.inf
    )  # as the sampler lays it out
    scores = scores.expand(points, -1).contiguous()
    draws = Draws(
        scores.amax(-1),
        np.arange(points),
        np.full(points, 1.0 / sampling.temperature, np.float32),
        np.full(points, sampling.top_k, np.int64),
        np.full(points, sampling.top_p),
        np.full(points, sampling.min_p),
        (np.arange(points) + 0.5) / points,
    )
    tokens = draw(scores, draws, torch.empty_like(scores))
    return np.bincount(tokens.numpy(), minlength=len(logits)) / points


def warped(logits: torch.Tensor, sampling: SamplingParams) -> NDArray[np.float64]:
    """The distribution according to transformers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    scores = warpers(torch.LongTensor([[0]]), logits[None].double())
    return np.asarray(scores.softmax(-1)[0].numpy())


@pytest.mark.parametrize("vocab_size", [37, 64, 300])
@pytest.mark.parametrize(
    "sampling",
    [
        params(),
        params(temperature=0.3),
        params(top_k=1),
        params(top_k=5),
        params(top_k=64),
        params(top_k=200, top_p=0.99),
        params(top_p=0.05),
        params(top_p=0.5),
        params(top_p=0.9, temperature=0.7),
        params(top_p=0.97, temperature=2.0),
        params(min_p=0.02),
        params(min_p=0.5, temperature=2.0),
        params(min_p=1.0),
        params(top_k=30, top_p=0.8),
        params(top_k=30, top_p=0.95, min_p=0.1, temperature=1.4),
    ],
    ids=lambda sampling: f"t{sampling.temperature}k{sampling.top_k}p{sampling.top_p}m{sampling.min_p}",
)
def test_support_and_probabilities_are_those_of_transformers(sampling: SamplingParams, vocab_size: int) -> None:
    points = 4000
    for seed in range(3):
        logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 2
        expected = warped(logits, sampling)
        observed = grid(logits, sampling, points)
        assert np.abs(observed - expected).max() <= 1.01 / points
        assert not observed[expected == 0.0].any()
        assert observed[expected > 1.01 / points].all()


def test_top_k_keeps_ties_as_transformers_does() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.5, 2.0, -0.0, 0.0])
    for top_k, support in ((1, {1}), (2, {1, 2, 3, 5}), (4, {1, 2, 3, 5}), (7, {0, 1, 2, 3, 4, 5, 6, 7})):
        observed = grid(logits, params(top_k=top_k), 1000)
        assert set(np.flatnonzero(observed)) == support
        assert set(np.flatnonzero(warped(logits, params(top_k=top_k)))) == support


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_token_does_not_depend_on_how_many_candidates_were_looked_at(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, vocab_size = 200, 5_000
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(rows, vocab_size, generator=generator) * torch.linspace(0.2, 5, rows)[:, None]).to(dtype)
    kinds = [
        params(top_p=0.9),
        params(top_p=0.999999),
        params(top_k=50),
        params(top_k=64),
        params(top_k=300, top_p=0.7),
        params(top_k=1500, min_p=0.01),
        params(min_p=0.05),
        params(min_p=1e-6, temperature=2.0),
    ]
    requests = [request(kinds[slot % len(kinds)], slot, seed=slot) for slot in range(rows)]
    monkeypatch.setattr(draw_module, "WORTHWHILE", 1)
    monkeypatch.setattr(draw_module, "WIDTHS", ())
    exact = sample(logits, requests)
    for widths in ((64, 1024, 16384), (1, 7, 64), (300,), (4999,)):
        monkeypatch.setattr(draw_module, "WIDTHS", widths)
        assert sample(logits, requests) == exact
    monkeypatch.setattr(draw_module, "AT_ONCE", 1)
    assert sample(logits, requests) == exact
