"""One request's trouble is its own."""

import pytest
import torch

from engine_core.sampling.sampler import Sampler
from tests.engine_core.architectures import VOCAB, build, config_of
from tests.engine_core.driver import BACKENDS, CPU, Engine, make_request

POISON = 77  # a token whose embedding is not a number
HEALTHY = (tuple(range(5, 24)), (9, 8, 7), (101, 4, 4, 100, 17, 23, 90, 11))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "gpt_oss", "qwen3_moe"])
def test_a_request_that_turns_to_nan_harms_nobody(name: str, backend: str) -> None:
    model = build(config_of(name))
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
    engine = Engine(model, backend=backend, num_blocks=24)
    alone = [engine.generate([prompt], 8)[0] for prompt in HEALTHY]
    poisoned = (3, 4, POISON, 5, 6, 7)
    together = engine.generate([HEALTHY[0], poisoned, *HEALTHY[1:]], 8, chunk=3)
    assert [together[0], *together[2:]] == alone
    assert any(step.isnan().any() for step in engine.sampler.logits), "nothing was poisoned"
    # The blocks that held it are used again: what a sequence does not see of a block must not matter.
    for _ in range(4):
        assert engine.generate(HEALTHY, 8, chunk=2) == alone


def test_logits_do_not_depend_on_neighbours() -> None:
    engine = Engine(build(config_of("llama")))
    engine.generate([HEALTHY[0]], 1)
    (alone,) = engine.sampler.logits
    engine.sampler.logits.clear()
    engine.generate(HEALTHY, 1)
    torch.testing.assert_close(engine.sampler.logits[0][0], alone[0], rtol=0, atol=1e-5)


def test_admitted_requests_reach_the_sampler_before_the_step() -> None:
    engine = Engine(build(config_of("llama")))
    request = engine.admit(make_request(HEALTHY[0]))
    engine.step([engine.row(request, 4)], [request])
    assert engine.sampler.admitted == [request]
    assert engine.sampler.logits == [], "a chunk that samples nothing was sampled"
    assert request.out == []


def test_the_sampler_fits_the_runner() -> None:
    engine = Engine(build(config_of("llama")))
    engine.runner._sampler = Sampler(VOCAB, 8, [2], CPU)
    assert engine.generate(HEALTHY, 6) == Engine(build(config_of("llama"))).generate(HEALTHY, 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_and_keys_may_come_in_another_dtype_than_the_cache(backend: str) -> None:
    model = build(config_of("qwen3")).to(torch.bfloat16)
    for layer in model.model.layers:
        layer.self_attn.k_norm.register_forward_hook(lambda module, inputs, output: output.float())
    want = Engine(build(config_of("qwen3")).to(torch.bfloat16), backend=backend).generate(HEALTHY, 6)
    assert Engine(model, backend=backend).generate(HEALTHY, 6) == want


def test_a_half_precision_model_gives_the_tokens_of_a_plain_forward() -> None:
    """bfloat16, up to logits that rounding can't tell apart."""
    model = build(config_of("llama")).to(torch.bfloat16)
    plain = build(config_of("llama")).to(torch.bfloat16)
    engine = Engine(model)
    for prompt in HEALTHY:
        (out,) = engine.generate([prompt], 8, chunk=3)
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([[*prompt, *out]])).logits[0].float()
        for offset, token in enumerate(out):
            row = logits[len(prompt) - 1 + offset]
            assert row.max() - row[token] <= 0.05 * row.abs().max()
