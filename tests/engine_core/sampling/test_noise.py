"""The noise against the published generator, and as noise."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from engine_core.sampling import noise


def uniforms(seeds: Sequence[int], choices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    streams = [noise.stream(seed, choice) for seed, choice in zip(seeds, choices, strict=True)]
    return noise.uniform(np.array(streams, np.uint64), np.array(positions, np.uint64))


def test_noise_is_splitmix64() -> None:
    """The first outputs of the reference implementation from state 0."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    numbers = noise.uniform(np.zeros(3, np.uint64), np.arange(3, dtype=np.uint64))
    assert numbers.tolist() == [(output >> 11) * 2.0**-53 for output in first]
    assert noise.finalise(noise.GAMMA) == first[0]
    assert noise.stream(-1, 0) == noise.stream(2**64 - 1, 0) != noise.stream(1, 0)


COUNT = 100_000
MANY = range(COUNT)
AXES = {
    "positions": ([7] * COUNT, [0] * COUNT, MANY),
    "late_positions": ([7] * COUNT, [0] * COUNT, range(10**9, 10**9 + COUNT)),
    "choices": ([7] * COUNT, MANY, [3] * COUNT),
    "seeds": (MANY, [0] * COUNT, [0] * COUNT),
    "seeds_apart": ([seed << 40 for seed in MANY], [1] * COUNT, [5] * COUNT),
    "diagonal": (MANY, [0] * COUNT, MANY),
}


@pytest.mark.parametrize("axis", AXES)
def test_noise_is_uniform_and_uncorrelated_along_every_axis(axis: str) -> None:
    numbers = uniforms(*AXES[axis])
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert len(np.unique(numbers)) == COUNT
    assert stats.chisquare(np.histogram(numbers, 256, (0, 1))[0]).pvalue > 1e-3
    for lag in (1, 2, 17):
        correlation = np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(COUNT)
    pairs = np.histogram2d(numbers[::2], numbers[1::2], 16, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_streams_of_neighbouring_seeds_and_choices_are_unrelated() -> None:
    positions = list(range(2000))
    streams = [uniforms([seed] * 2000, [choice] * 2000, positions) for seed in range(8) for choice in range(4)]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)
