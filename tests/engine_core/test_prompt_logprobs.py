"""Log probabilities of a prompt are those of a plain forward pass over it (float32), however it was cut and batched."""

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel

from engine_core.attention.reference import ReferenceAttention
from engine_core.model.adapter import ModelAdapter
from engine_core.request import Request
from protocol.prompt_logprobs import PromptLogprob
from protocol.sampling import SamplingParams
from tests.engine_core.architectures import CONTEXT, VOCAB, build, config_of
from tests.engine_core.driver import BLOCK, reference
from tests.engine_core.serving import CPU, Serving, adapt, greedy

TOLERANCE = 1e-5
SPREAD = 0.15  # of the weights: wider ones, as elsewhere, make the rounding of float32 as large as the tolerance
ARCHITECTURES = ("llama", "qwen3", "gemma2", "gpt2", "mixtral")
RNG = random.Random(9)
PROMPT = [RNG.randrange(3, VOCAB) for _ in range(41)]
OTHERS = [[RNG.randrange(3, VOCAB) for _ in range(length)] for length in (17, 1, 30)]
WAYS = {
    "whole": {"max_num_batched_tokens": 256},
    "chunked": {"max_num_batched_tokens": 7},
    "few logits": {"max_num_batched_tokens": 64, "max_num_scored": 5},
    "overlapped": {"max_num_batched_tokens": 16, "max_num_scored": 9, "overlap": 1},
    "overlapped, no cache": {"max_num_batched_tokens": 16, "overlap": 2, "prefix_caching": False},
}


def made(name: str) -> tuple[PreTrainedModel, ModelAdapter]:
    """The model as transformers runs it, and as the engine does."""
    models = []
    for _ in range(2):
        config = config_of(name)
        config.initializer_range = SPREAD
        models.append(build(config))
    return models[0], adapt(models[1], CONTEXT)


def serving(adapter: ModelAdapter, **changes: int | bool) -> Serving:
    options: dict[str, int | bool] = {"num_blocks": 128, "max_num_seqs": 6, **changes}
    return Serving(adapter, ReferenceAttention(BLOCK, torch.float32, CPU), BLOCK, max_model_len=CONTEXT, **options)  # type: ignore[arg-type]


def asking(prompt: Sequence[int], top: int, handle: int = 0, max_tokens: int = 3, **more: object) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, prompt_logprobs=top)
    return Request(handle, f"asking-{handle}", prompt, sampling, **more)  # type: ignore[arg-type]


def told(request: Request) -> list[PromptLogprob]:
    """All of a request's log, which begins with the prompt's second token and has every position once."""
    assert request.prompt_logprobs is not None
    position = 1
    for portion in request.prompt_logprobs:
        assert portion.pos == position
        position = portion.end
    assert position == max(request.prompt_len, 1)
    return [entry for portion in request.prompt_logprobs for entry in portion.entries(20)]


def check_against(model: PreTrainedModel, prompt: Sequence[int], entries: Sequence[PromptLogprob], top: int) -> None:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(prompt)])).logits[0].double()
    expected = logits.log_softmax(-1)
    assert len(entries) == len(prompt) - 1
    for position, entry in enumerate(entries, 1):
        row = expected[position - 1]
        own = row[prompt[position]]
        assert entry.logprob == pytest.approx(own.item(), abs=TOLERANCE)
        near = (row - own).abs() < TOLERANCE  # tokens that rounding may put on either side of it
        assert (row > own + TOLERANCE).sum() < entry.rank <= (row > own).sum() + near.sum()
        best = row.sort(descending=True).values[:top]
        assert list(entry.top_logprobs) == pytest.approx(best.tolist(), abs=TOLERANCE)
        assert row[list(entry.top_ids)].tolist() == pytest.approx(best.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probabilities_are_those_of_a_plain_forward(name: str) -> None:
    model, adapter = made(name)
    outputs = [reference(model, prompt, 3) for prompt in (PROMPT, *OTHERS)]
    alone = asking(PROMPT, 4)
    assert serving(adapter, max_num_batched_tokens=256).run([alone]) == outputs[:1]
    check_against(model, PROMPT, told(alone), 4)
    for options in WAYS.values():
        mixed = [asking(PROMPT, 20), greedy(OTHERS[0], 3, 1), asking(OTHERS[1], 2, 2), asking(OTHERS[2], 0, 3)]
        assert serving(adapter, **options).run(mixed) == outputs
        assert mixed[1].prompt_logprobs is None
        for request, top in ((mixed[0], 20), (mixed[2], 2), (mixed[3], 0)):
            check_against(model, request.tokens[: request.prompt_len], told(request), top)


def test_a_cached_prefix_is_not_used_but_may_be_shared_afterwards() -> None:
    model, adapter = made("llama")
    server = serving(adapter, max_num_batched_tokens=16)
    server.run([greedy(PROMPT, 3)])
    again = asking(PROMPT, 1, 1)
    server.run([again])
    assert again.cached == 0
    check_against(model, PROMPT, told(again), 1)

    fresh = serving(adapter, max_num_batched_tokens=16)
    follower = greedy(PROMPT, 3, 2)
    fresh.run([asking(PROMPT, 1, 1)])
    fresh.run([follower])
    assert follower.cached == len(PROMPT) // BLOCK * BLOCK


def test_a_preempted_prompt_goes_on_behind_what_it_has() -> None:
    model, adapter = made("qwen3")
    server = serving(adapter, num_blocks=1 + 16, max_num_batched_tokens=8, max_num_scored=1)
    elder = greedy(OTHERS[2], 24, 1)
    request = asking(PROMPT[:24], 2, 2)
    assert server.run([elder, request]) == [reference(model, OTHERS[2], 24), reference(model, PROMPT[:24], 3)]
    assert request.preemptions > 0
    check_against(model, PROMPT[:24], told(request), 2)


@pytest.mark.parametrize("caching", [True, False])
def test_only_the_first_choice_computes_and_a_replay_does_not(caching: bool) -> None:
    model, adapter = made("llama")
    server = serving(adapter, max_num_batched_tokens=16, prefix_caching=caching)
    leader = asking(PROMPT, 2, 1)
    siblings = [asking(PROMPT, 2, 1 + choice, choice=choice, leader=leader) for choice in (1, 2)]
    outputs = server.run([leader, *siblings])
    assert outputs == [reference(model, PROMPT, 3)] * 3
    assert [sibling.prompt_logprobs for sibling in siblings] == [None, None]
    check_against(model, PROMPT, told(leader), 2)

    replayed = asking(PROMPT, 2, 4, max_tokens=4, out=outputs[0])
    assert server.run([replayed]) == [reference(model, PROMPT, 4)]
    assert replayed.prompt_logprobs is None


def test_a_prompt_of_one_token_has_none() -> None:
    request = asking([5], 3)
    serving(made("llama")[1], max_num_batched_tokens=16).run([request])
    assert told(request) == []
