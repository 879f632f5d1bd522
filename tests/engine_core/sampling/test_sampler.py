"""The sampler against an independent statement of the same distributions, in NumPy and fp64, and against itself."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from engine_core.request import Request
from engine_core.sampling import noise
from engine_core.sampling.sampler import Sampler
from protocol.sampling import SamplingParams
from tests.engine_core.sampling.requests import EOS, params, request, sample, sampler_for

CPU = torch.device("cpu")


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------- distributions


def probabilities(
    logits: torch.Tensor, sampling: SamplingParams, prompt: Sequence[int], out: Sequence[int]
) -> NDArray[np.float64]:
    """What the documentation of SamplingParams says, token by token, without a thought for speed."""
    scores = logits.double().numpy().copy()
    tokens = range(len(scores))
    if sampling.allowed_token_ids is not None:
        for token in tokens:
            if token not in sampling.allowed_token_ids:
                scores[token] = -np.inf
    for token, bias in sampling.logit_bias:
        scores[token] += bias
    for word in sampling.bad_words:
        if list(word[:-1]) == list(out)[len(out) - len(word) + 1 :]:
            scores[word[-1]] = -np.inf
    if len(out) < sampling.min_tokens:
        scores[[EOS, *sampling.stop_token_ids]] = -np.inf
    for token in {*prompt, *out}:
        factor = sampling.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token, count in Counter(out).items():
        scores[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    scores /= sampling.temperature
    if sampling.top_k:
        scores[scores < np.sort(scores)[-min(sampling.top_k, len(scores))]] = -np.inf
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    if sampling.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]])
        weights[order[before >= sampling.top_p]] = 0.0
    weights[weights < sampling.min_p * weights.max()] = 0.0
    return np.asarray(weights / weights.sum())


PROMPT = (3, 5, 5, 7, 11)
OUT = (4, 5, 6, 4, 4, 9)
KNOBS = {
    "nothing": params(),
    "cold": params(temperature=0.5),
    "hot": params(temperature=1.7),
    "top_k": params(top_k=7),
    "top_p": params(top_p=0.8),
    "min_p": params(min_p=0.1),
    "repetition": params(repetition_penalty=1.5),
    "repetition_reward": params(repetition_penalty=0.6),
    "presence": params(presence_penalty=1.2),
    "frequency": params(frequency_penalty=0.7),
    "all_penalties": params(repetition_penalty=1.2, presence_penalty=-0.5, frequency_penalty=0.4),
    "bias": params(logit_bias=((3, 2.0), (8, -1.5), (10, -100.0), (0, 4.0))),
    "allowed": params(allowed_token_ids=(1, 4, 9, 16, 25)),
    "bad_words": params(bad_words=((0,), (9, 1), (4, 9, 3), (4, 8), (5, 9, 4))),
    "min_tokens": params(min_tokens=7, stop_token_ids=(0, 12), ignore_eos=True),
    "min_tokens_reached": params(min_tokens=6, stop_token_ids=(0, 12)),
    "truncations": params(temperature=1.3, top_k=20, top_p=0.9, min_p=0.05),
    "everything": params(
        temperature=1.2,
        top_k=25,
        top_p=0.95,
        min_p=0.02,
        repetition_penalty=1.1,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        min_tokens=10,
        logit_bias=((1, 1.0),),
        bad_words=((4,),),
        allowed_token_ids=tuple(range(1, 35)),
    ),
}


@pytest.mark.parametrize("name", KNOBS)
def test_the_distribution_is_the_documented_one(name: str) -> None:
    """20,000 seeds, chi-square; what cannot be is never drawn."""
    sampling, vocab_size, rows, rounds = KNOBS[name], 40, 500, 40
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(7)) * 1.5
    expected = probabilities(logits, sampling, PROMPT, OUT)
    batch = logits.expand(rows, -1)
    sampler = Sampler(vocab_size, rows, [EOS], CPU)
    counts = np.zeros(vocab_size)
    for turn in range(rounds):
        requests = [request(sampling, slot, seed=turn * rows + slot, prompt=PROMPT, out=OUT) for slot in range(rows)]
        for each in requests:
            sampler.admit(each)
        counts += np.bincount(sampler.sample(batch, requests).tokens.numpy(), minlength=vocab_size)
    assert counts[expected == 0.0].sum() == 0
    expected *= rows * rounds
    common = expected >= 5.0
    observed = [*counts[common], counts[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    if wanted[-1] == 0.0:
        observed.pop(), wanted.pop()
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_a_vocabulary_of_152k_is_inverted_where_the_uniform_says() -> None:
    vocab_size, rows = 151_936, 12
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(6)) * 2
    for sampling in (params(), params(temperature=1.5), params(top_p=0.9), params(top_k=400), params(min_p=0.03)):
        requests = [request(sampling, slot, seed=slot, out=[0] * slot) for slot in range(rows)]
        for row, token in enumerate(sample(logits, requests)):
            uniform = noise.uniform(
                np.array([noise.stream(row, 0)], np.uint64), np.array([row], np.uint64)
            ).item()  # position is the length of the output
            expected = probabilities(logits[row], sampling, (), ())
            order = np.arange(vocab_size)
            if sampling.top_k or sampling.top_p < 1.0 or sampling.min_p:
                order = np.lexsort((order, -logits[row].numpy()))
            mass = np.cumsum(expected[order])
            place = int(np.flatnonzero(order == token)[0])
            assert mass[place] - expected[token] - 1e-6 <= uniform <= mass[place] + 1e-6
            assert expected[token] > 0.0


# -------------------------------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_highest_and_the_first_of_equals(dtype: torch.dtype) -> None:
    logits = torch.randn(16, 1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[3, [10, 500, 999]] = 9.0
    requests = [request(params(temperature=0.0), slot) for slot in range(16)]
    tokens = sample(logits, requests)
    assert tokens[3] == 10
    assert tokens == [row.index(max(row)) for row in logits.float().tolist()]


def test_greedy_ignores_truncation_but_not_edits_and_penalties() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    greedy = {"temperature": 0.0, "top_k": 1, "top_p": 0.1, "min_p": 1.0}
    assert sample(logits, [request(params(**greedy))]) == [4]
    assert sample(logits, [request(params(**greedy, logit_bias=((0, 9.0),)))]) == [0]
    assert sample(logits, [request(params(**greedy, repetition_penalty=2.0), prompt=(4,))]) == [3]
    assert sample(logits, [request(params(**greedy, presence_penalty=2.0), prompt=(4,))]) == [4]
    assert sample(logits, [request(params(**greedy, presence_penalty=2.0), prompt=(4,), out=(4,))]) == [3]


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.randn(len(KNOBS), 50, generator=torch.Generator().manual_seed(2))
    logits[0, 3] = torch.nan
    before = logits.clone()
    sample(logits, [request(sampling, slot, prompt=PROMPT, out=OUT) for slot, sampling in enumerate(KNOBS.values())])
    assert torch.equal(logits, before) or torch.equal(logits.nan_to_num(), before.nan_to_num())


# -------------------------------------------------------------------------------------------------------- independence


def various(count: int, vocab_size: int) -> list[Request]:
    """Requests of every kind, each with its own history."""
    rng = np.random.default_rng(5)
    kinds = [*KNOBS.values(), params(temperature=0.0), params(logprobs=5), params(top_p=0.999, temperature=2.0)]
    return [
        request(
            kinds[slot % len(kinds)],
            slot,
            seed=int(rng.integers(-(2**63), 2**63 - 1)),
            choice=slot % 3,
            prompt=rng.integers(0, vocab_size, 30).tolist(),
            out=rng.integers(0, vocab_size, int(rng.integers(0, 40))).tolist(),
        )
        for slot in range(count)
    ]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize(("vocab_size", "dtype"), [(997, torch.bfloat16), (32_003, torch.float32)])
def test_a_token_is_the_same_alone_and_in_any_company(vocab_size: int, dtype: torch.dtype) -> None:
    count = 64
    logits = (torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(3)) * 3).to(dtype)
    requests = various(count, vocab_size)
    sampler = sampler_for(requests, vocab_size)
    together = sampler.sample(logits, requests)
    assert together.logprobs is not None

    order = np.random.default_rng(1).permutation(count).tolist()
    shuffled = sampler.sample(logits[order], [requests[row] for row in order])
    assert shuffled.tokens.tolist() == together.tokens[order].tolist()
    assert shuffled.logprobs == [together.logprobs[row] for row in order]

    for row in range(count):
        alone = sampler.sample(logits[row : row + 1], requests[row : row + 1])
        assert alone.tokens.tolist() == together.tokens[row : row + 1].tolist()
        assert alone.logprobs == (together.logprobs[row : row + 1] if together.logprobs[row] else None)

    elsewhere = various(count, vocab_size)
    for each in elsewhere:
        each.slot = count - 1 - each.slot
    assert sample(logits, elsewhere) == together.tokens.tolist()


def test_noise_depends_on_seed_choice_and_position_and_on_nothing_else() -> None:
    logits = torch.zeros(4, 10_000)
    first = sample(logits, [request(params(), slot, seed=5, choice=slot, out=[0] * 3) for slot in range(4)])
    assert len(set(first)) == 4
    # another slot, other tokens, another prompt: the same numbers
    again = sample(logits[:1], [request(params(), 3, seed=5, choice=2, prompt=[9] * 50, out=[8] * 3)])
    assert again == [first[2]]
    assert sample(logits[:1], [request(params(), seed=6, choice=2, out=[0] * 3)]) != [first[2]]
    assert sample(logits[:1], [request(params(), seed=5, choice=2, out=[0] * 4)]) != [first[2]]


# ------------------------------------------------------------------------------------------------------------- history


def test_penalties_follow_the_tokens_as_they_come_and_a_preemption_changes_nothing() -> None:
    logits = torch.randn(60, generator=torch.Generator().manual_seed(8))[None]
    sampling = params(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3, temperature=0.9)
    growing = request(sampling, seed=4, prompt=PROMPT)
    sampler = sampler_for([growing], 60)
    for _ in range(200):
        expected = probabilities(logits[0], sampling, PROMPT, growing.out)
        afresh = request(sampling, seed=4, prompt=PROMPT, out=growing.out)
        token = sampler.sample(logits, [growing]).tokens.tolist()[0]
        assert sample(logits, [afresh]) == [token]
        assert expected[token] > 0.0
        growing.tokens.append(token)
    sampler.admit(growing)  # back from a preemption
    token = sampler.sample(logits, [growing]).tokens.tolist()
    assert token == sample(logits, [request(sampling, seed=4, prompt=PROMPT, out=growing.out)])


def test_sampling_the_same_position_twice_counts_nothing_twice() -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(8))
    once = request(params(frequency_penalty=2.0), seed=1, prompt=PROMPT, out=OUT)
    sampler = sampler_for([once], 60)
    assert len({sampler.sample(logits, [once]).tokens.tolist()[0] for _ in range(5)}) == 1


def test_a_slot_forgets_its_former_request() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    sampler = Sampler(5, 1, [EOS], CPU)
    former = request(
        params(allowed_token_ids=(0,), repetition_penalty=5.0, logprobs=2, min_tokens=9), prompt=(4,), out=(4, 4)
    )
    sampler.admit(former)
    assert sampler.sample(logits, [former]).tokens.tolist() == [0]
    successor = request(params(temperature=0.0))
    sampler.admit(successor)
    sampled = sampler.sample(logits, [successor])
    assert sampled.tokens.tolist() == [4]
    assert sampled.logprobs is None


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_no_end_before_min_tokens(ignore_eos: bool) -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0, 8.0, 7.0]])  # EOS is 2
    sampling = params(temperature=0.0, min_tokens=2, stop_token_ids=(3,), ignore_eos=ignore_eos)
    assert [sample(logits, [request(sampling, out=[0] * length)]) for length in range(3)] == [[4], [4], [2]]


def test_bad_words_look_at_the_output_alone() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    sampling = params(temperature=0.0, bad_words=((1, 2, 3),))
    assert sample(logits, [request(sampling, prompt=(1, 2))]) == [3]
    assert sample(logits, [request(sampling, prompt=(1,), out=(2,))]) == [3]
    assert sample(logits, [request(sampling, out=(1, 2))]) == [2]
    assert sample(logits, [request(sampling, out=(1, 2, 0))]) == [3]


# --------------------------------------------------------------------------------------------------------- broken rows


def test_broken_rows_disturb_nobody_and_give_a_defined_token() -> None:
    vocab_size = 300
    logits = torch.randn(64, vocab_size, generator=torch.Generator().manual_seed(9)) * 3
    whole = various(64, vocab_size)
    expected = sample(logits, whole)
    broken = logits.clone()
    broken[0::8, ::2] = torch.nan
    broken[1::8] = torch.nan
    broken[2::8] = -torch.inf
    broken[3::8, 77] = torch.inf
    tokens = sample(broken, various(64, vocab_size))
    assert all(0 <= token < vocab_size for token in tokens)
    for row in range(64):
        if row % 8 > 3:
            assert tokens[row] == expected[row]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("trait", [{}, {"logprobs": 2}, {"top_k": 3}])
def test_what_a_broken_row_gives(temperature: float, trait: dict[str, int]) -> None:
    def token(row: list[float], **changes: object) -> int:
        made = request(params(temperature=temperature, **trait, **changes), prompt=(0,))
        return sample(torch.tensor([row]), [made])[0]

    nan, inf = math.nan, math.inf
    assert token([nan, nan, -inf, 1.0, nan]) == 3
    assert token([0.0, inf, 1.0, nan, 0.0]) == 1
    assert token([nan] * 5) == EOS
    assert token([-inf] * 5) == EOS
    # a request that forbids every token gets the model's choice, among the allowed ids if it named some
    assert token([0.0, 1.0, 2.0, 4.0, 3.0], bad_words=((0,), (1,), (2,), (3,), (4,))) == 3
    assert token([0.0, 1.0, 2.0, 4.0, 3.0], allowed_token_ids=(1, 2), bad_words=((1,), (2,))) == 2
    assert token([0.0, 1.0, 2.0, 4.0, 3.0], allowed_token_ids=(2,), min_tokens=1) == 2


def test_a_model_without_an_end_of_sequence() -> None:
    sampler = Sampler(5, 1, [], CPU)
    made = request(params(min_tokens=3))
    sampler.admit(made)
    assert sampler.sample(torch.full((1, 5), torch.nan), [made]).tokens.tolist() == [0]


PARAMETERS = st.builds(
    params,
    temperature=st.sampled_from([0.0, 5e-324, 1e-40, 1e-6, 0.01, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([5e-324, 1e-9, 0.1, 0.5, 0.999999999, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 63, 64, 65, 2**31 - 1]),
    min_p=st.sampled_from([0.0, 5e-324, 1e-9, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([5e-324, 1e-40, 0.5, 1.0, 10.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    frequency_penalty=st.sampled_from([-2.0, 0.0, 2.0]),
    min_tokens=st.integers(0, 5),
    logit_bias=st.lists(st.tuples(st.integers(0, 69), st.floats(-100.0, 100.0)), max_size=4).map(tuple),
    allowed_token_ids=st.none() | st.lists(st.integers(0, 69), min_size=1, max_size=4).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
)
SCORES = st.floats(-30.0, 30.0, width=32) | st.sampled_from([-math.inf, math.inf, math.nan, 3e38, -3e38, 0.0, -0.0])


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    rows=st.lists(st.tuples(PARAMETERS, st.lists(SCORES, min_size=70, max_size=70)), min_size=1, max_size=4),
    out=st.lists(st.integers(0, 69), max_size=6),
)
def test_whatever_the_parameters_a_token_comes_out_and_it_is_the_row_s_own(
    rows: list[tuple[SamplingParams, list[float]]], out: list[int]
) -> None:
    logits = torch.tensor([row for _, row in rows])
    requests = [request(sampling, slot, seed=slot, out=out) for slot, (sampling, _) in enumerate(rows)]
    sampler = sampler_for(requests, 70)
    together = sampler.sample(logits, requests)
    for row, (sampling, scores) in enumerate(rows):
        token = int(together.tokens[row])
        assert 0 <= token < 70
        alone = sampler.sample(logits[row : row + 1], requests[row : row + 1])
        assert alone.tokens.tolist() == [token]
        if sampling.allowed_token_ids and any(scores[id] > -math.inf for id in sampling.allowed_token_ids):
            assert token in sampling.allowed_token_ids
        if together.logprobs is not None and (entry := together.logprobs[row]) is not None:
            assert math.isfinite(entry.logprob)
            possible = sum(score > -math.inf for score in scores)
            assert len(entry.top_ids) == len(entry.top_logprobs) == min(sampling.logprobs or 0, possible)
            assert sorted(entry.top_logprobs, reverse=True) == entry.top_logprobs
