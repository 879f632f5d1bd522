"""What a grammar forbids is never chosen, whatever else a request says and whatever the model gives."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engine_core.grammar.followings import Mask
from engine_core.request import Request
from engine_core.sampling.allowed import spread, unpacked
from engine_core.sampling.sampler import SampledTokens, Sampler
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from tests.engine_core.sampling.requests import EOS, params, request

VOCAB = 77
GRAMMAR = Grammar(GrammarKind.REGEX, "a")


class Masks:
    """By slot, what the test says; None is late."""

    def __init__(self, *allowed: set[int] | None, may_end: bool = False, width: int = 104) -> None:
        self.opened: list[Request] = []
        self.out_of: list[Request] = []
        self._allowed = allowed
        self._may_end = may_end
        self._width = width

    def open(self, request: Request) -> None:
        self.opened.append(request)

    def wait(self, requests: Sequence[Request]) -> list[Mask | None]:
        return [self._mask(self._allowed[request.slot]) for request in requests]

    def exhausted(self, request: Request) -> None:
        self.out_of.append(request)

    def _mask(self, allowed: set[int] | None) -> Mask | None:
        if allowed is None:
            return None
        bits = np.zeros(self._width, np.bool_)
        bits[list(allowed)] = True
        return Mask(np.packbits(bits, bitorder="little"), self._may_end)


def sampled(
    masks: Masks, logits: torch.Tensor, requests: Sequence[Request], device: torch.device | None = None
) -> SampledTokens:
    sampler = Sampler(VOCAB, 8, [EOS], device or torch.device("cpu"), masks)
    for each in requests:
        sampler.admit(each)
    return sampler.sample(logits, requests)


def held(slot: int = 0, out: Sequence[int] = (), **changes: object) -> Request:
    return request(params(grammar=GRAMMAR, **changes), slot, out=out)


def noise(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_only_what_is_allowed_is_chosen(temperature: float, dtype: torch.dtype) -> None:
    masks = Masks({3, 70}, {5}, {0, 76, 41})
    seen: list[set[int]] = [set(), set(), set()]
    for seed in range(40):
        requests = [
            request(params(grammar=GRAMMAR, temperature=temperature, top_k=seed % 3), slot, seed=seed)
            for slot in range(3)
        ]
        for row, token in enumerate(sampled(masks, noise(3, seed).to(dtype), requests).tokens.tolist()):
            seen[row].add(token)
    assert seen == [{3, 70}, {5}, {0, 76, 41}]


def test_the_model_chooses_among_them() -> None:
    logits = noise(1)
    best = max((3, 70, 9), key=lambda token: float(logits[0, token]))
    assert sampled(Masks({3, 70, 9}), logits, [held(temperature=0.0)]).tokens.tolist() == [best]


def test_rows_without_a_grammar_are_as_without_neighbours() -> None:
    free = [request(params(temperature=1.3), slot, seed=slot) for slot in (1, 3)]
    logits = noise(4)
    alone = sampled(Masks(), logits[[1, 3]], free).tokens.tolist()
    masks = Masks({1}, None, {2}, None)
    mixed = sampled(masks, logits, [held(0), free[0], held(2), free[1]])
    assert mixed.tokens.tolist() == [1, alone[0], 2, alone[1]]
    assert [each.slot for each in masks.opened] == [0, 2]


def test_a_row_whose_mask_is_late_is_withheld() -> None:
    result = sampled(Masks({4}, None, {6}), noise(3), [held(0), held(1), held(2)])
    assert result.withheld == (1,)
    assert (result.tokens[0], result.tokens[2]) == (4, 6)
    assert sampled(Masks(None), noise(1), [held(0)]).withheld == (0,)


@pytest.mark.parametrize(
    ("sampling", "out", "may_end", "expected"),
    [
        ({}, (), False, {3}),
        ({}, (), True, {3, EOS}),
        ({"stop_token_ids": (9,)}, (), True, {3, 9, EOS}),
        ({"stop_token_ids": (9,)}, (), False, {3}),
        ({"ignore_eos": True}, (), True, {3}),
        ({"ignore_eos": True, "stop_token_ids": (9,)}, (), True, {3, 9}),
        ({"min_tokens": 2}, (3,), True, {3}),
        ({"min_tokens": 2}, (3, 3), True, {3, EOS}),
        ({"min_tokens": 2, "stop_token_ids": (3,)}, (1, 3), True, {3, EOS}),
        ({"allowed_token_ids": (3, 5)}, (), True, {3}),
        ({"allowed_token_ids": (EOS, 5)}, (), True, {EOS}),
        ({"bad_words": ((3,),)}, (), True, {EOS}),
        ({"bad_words": ((1, 3),)}, (3,), False, {3}),
    ],
)
def test_when_a_sentence_may_end(
    sampling: dict[str, object], out: tuple[int, ...], may_end: bool, expected: set[int]
) -> None:
    masks = Masks({3}, may_end=may_end)
    seen = set()
    for seed in range(60):
        each = request(params(grammar=GRAMMAR, temperature=2.0, **sampling), out=out, seed=seed)
        result = sampled(masks, torch.zeros(1, VOCAB), [each])
        assert result.withheld == ()
        seen.add(result.tokens.item())
    assert seen == expected


@pytest.mark.parametrize(
    "sampling", [{"allowed_token_ids": (5,)}, {"bad_words": ((3,),)}, {"min_tokens": 4, "stop_token_ids": (3,)}]
)
def test_where_nothing_is_left_nothing_is_chosen(sampling: dict[str, object]) -> None:
    masks = Masks({3})
    result = sampled(masks, noise(1), [held(**sampling)])
    assert result.withheld == (0,)
    assert [each.slot for each in masks.out_of] == [0]


def test_tokens_beyond_the_logits_do_not_count() -> None:
    masks = Masks({VOCAB, VOCAB + 1, 103})
    assert sampled(masks, noise(1), [held()]).withheld == (0,)
    assert len(masks.out_of) == 1
    assert sampled(Masks({76, VOCAB}), noise(1), [held()]).tokens.tolist() == [76]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_break_no_grammar(value: float, temperature: float) -> None:
    logits = noise(3)
    logits[0] = value
    logits[1, [5, 6]] = value
    logits[2, [1, 2, 9]] = value  # only what is forbidden
    rows = [held(slot, temperature=temperature) for slot in range(3)]
    tokens = sampled(Masks({5, 6}, {5, 6}, {5, 6}), logits, rows).tokens.tolist()
    assert set(tokens) <= {5, 6}
    clean = logits[2].clone()
    clean[[1, 2, 9]] = 0.0
    assert tokens[2] == sampled(Masks(None, None, {5, 6}), clean[None], [rows[2]]).tokens.item()


def test_penalties_and_bias_do_not_lift_a_mask() -> None:
    sampling = {"repetition_penalty": 0.1, "presence_penalty": -2.0, "logit_bias": ((8, 100.0),), "temperature": 0.0}
    each = request(params(grammar=GRAMMAR, **sampling), prompt=(8, 9), out=(8, 8))
    assert sampled(Masks({4}), noise(1), [each]).tokens.tolist() == [4]


def test_log_probabilities_are_the_models_own() -> None:
    logits = noise(1)
    result = sampled(Masks({4}), logits, [held(logprobs=2)])
    assert result.logprobs is not None
    [entry] = result.logprobs
    assert entry is not None
    expected = torch.log_softmax(logits[0].double(), -1)
    assert entry.logprob == pytest.approx(float(expected[4]), abs=1e-5)
    assert entry.top_ids == expected.topk(2).indices.tolist()


@pytest.mark.parametrize("others", [0, 2])
def test_nothing_asks_the_device(others: int) -> None:
    """See test_no_sync."""
    meta = torch.device("meta")
    asked: list[SamplingParams] = [params(grammar=GRAMMAR, temperature=0.0), params(grammar=GRAMMAR, top_p=0.5)]
    asked += [params() for _ in range(others)]
    requests = [request(sampling, slot) for slot, sampling in enumerate(asked)]
    logits = torch.empty(len(requests), VOCAB, dtype=torch.bfloat16, device=meta)
    result = sampled(Masks({3}, {4}, may_end=True), logits, requests, meta)
    assert result.tokens.shape == (len(requests),)


def test_the_device_spreads_bits_as_the_host_does() -> None:
    bits = np.random.default_rng(0).integers(0, 256, (5, 16), np.uint8)
    expected = [[bool(row[i >> 3] >> (i & 7) & 1) for i in range(128)] for row in bits.tolist()]
    assert spread(bits, torch.device("cpu")).tolist() == expected
    assert unpacked(torch.from_numpy(bits)).tolist() == expected
