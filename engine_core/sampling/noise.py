"""Uniform noise without state: one number per (seed, choice, position), always the same one.

A generator's state would tie a token to the batch it was sampled in and would be lost with the process. Here position p
of a stream is output p of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), which
can be computed directly; its starting state is a hash of seed and choice. Knows nothing of tokens.
"""

import numpy as np
from numpy.typing import NDArray

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, made odd: splitmix64's increment
FIRST = 0xBF58476D1CE4E5B9  # the multipliers of splitmix64's finaliser: Stafford's "Mix13"
SECOND = 0x94D049BB133111EB
UNIT = 2.0**-53  # uniforms are multiples of it, so that they are exact doubles below 1


def finalise(state: int) -> int:
    """splitmix64's output function: a bijection of 64-bit words in which every input bit moves every output bit."""
    state = ((state ^ (state >> 30)) * FIRST) & MASK
    state = ((state ^ (state >> 27)) * SECOND) & MASK
    return state ^ (state >> 31)


def stream(seed: int, choice: int) -> int:
    """Starting state of the stream of one choice of one request: 64 bits. Any integers; seeds count modulo 2**64."""
    return finalise((finalise((seed + GAMMA) & MASK) + (choice + 1) * GAMMA) & MASK)


def uniform(streams: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Number `positions[i]` of stream `streams[i]`, in [0, 1). Both [n]; elementwise, so no element sees another."""
    state = streams + (positions + np.uint64(1)) * np.uint64(GAMMA)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(SECOND)
    state ^= state >> np.uint64(31)
    fractions: NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * UNIT
    return fractions
