"""Greedy tokens are transformers' own (float32), token by token, for every architecture: whole prompts and chunks of
any size, alone and mixed with others' prefills and decodes."""

import dataclasses
from functools import cache

import pytest

from tests.engine_core.architectures import SUPPORTED, build, config_of
from tests.engine_core.driver import BACKENDS, Engine, make_request, reference

MAX_TOKENS = 10
PROMPTS = (
    tuple((i * 37 + 5) % 126 + 2 for i in range(21)),
    (5,),
    (9, 8, 7, 100, 5, 43, 2),
    tuple((i * i * 11 + 3) % 126 + 2 for i in range(34)),
)
THOROUGH = ("llama", "gemma2", "gpt_oss", "deepseek_v3", "llama4_text", "gpt2")
WINDOWED = ("mistral", "gemma3_text", "gpt_oss", "phi3", "llama4_text", "modernbert-decoder")


@cache
def expected(name: str) -> list[list[int]]:
    model = build(config_of(name))
    return [reference(model, prompt, MAX_TOKENS) for prompt in PROMPTS]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # gpt_bigcode in transformers 5.17
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SUPPORTED)
def test_tokens_are_those_of_transformers(name: str, backend: str) -> None:
    want = expected(name)
    assert max(len(set(tokens)) for tokens in want) > 3, "the random model says one thing only: nothing is tested"
    engine = Engine(build(config_of(name)), backend=backend)
    assert [engine.generate([prompt], MAX_TOKENS)[0] for prompt in PROMPTS] == want
    for chunk in (None, 1, 3, 16):
        assert engine.generate(PROMPTS, MAX_TOKENS, chunk) == want, f"chunks of {chunk}"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "backend"), [(name, "cpu") for name in SUPPORTED] + [(name, "reference") for name in THOROUGH]
)
def test_every_chunk_size_gives_the_same_tokens(name: str, backend: str) -> None:
    want = expected(name)
    engine = Engine(build(config_of(name)), backend=backend)
    for chunk in range(1, max(map(len, PROMPTS)) + 1):
        assert engine.generate(PROMPTS, MAX_TOKENS, chunk) == want, f"chunks of {chunk}"
        alone = [engine.generate([prompt], MAX_TOKENS, chunk)[0] for prompt in PROMPTS[:1]]
        assert alone == want[:1], f"chunks of {chunk}, alone"


@pytest.mark.parametrize("name", WINDOWED)
def test_what_a_layer_may_see_matters_to_these_models(name: str) -> None:
    """Without its windows and chunks a model says something else, so the tests above do test them."""
    engine = Engine(build(config_of(name)))
    engine.adapter.geometries = tuple(
        dataclasses.replace(geometry, window=None, chunk=None) for geometry in engine.adapter.geometries
    )
    assert engine.generate(PROMPTS, MAX_TOKENS) != expected(name)


def test_blocks_of_another_size_change_nothing() -> None:
    for block_size in (1, 16, 32):
        engine = Engine(build(config_of("gemma2")), block_size=block_size)
        assert engine.generate(PROMPTS, MAX_TOKENS, 5) == expected("gemma2")


def test_a_token_that_the_host_does_not_know_yet_comes_from_the_device() -> None:
    """Two steps in flight: each decode is launched before the step that yields its input is collected."""
    model = build(config_of("llama"))
    engine = Engine(model)
    requests = [engine.admit(make_request(prompt, handle)) for handle, prompt in enumerate(PROMPTS)]
    pending = [engine.launch([engine.row(r, r.pending) for r in requests], requests)]
    for _ in range(MAX_TOKENS - 1):
        rows = [engine.row(r, 1) for r in requests]
        assert all(row.start == len(row.request.tokens) for row in rows)
        pending.append(engine.launch(rows))
        engine.settle(pending.pop(0))
    engine.settle(pending.pop())
    assert [request.out for request in requests] == expected("llama")
