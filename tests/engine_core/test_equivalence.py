"""Continuous batching must not show in the tokens: they are those of transformers (float32), whatever is scheduled."""

import random

import pytest
import torch

from engine_core.attention.cpu import CpuAttention
from engine_core.attention.reference import ReferenceAttention
from tests.engine_core.architectures import CONTEXT, SUPPORTED, VOCAB, build, config_of
from tests.engine_core.driver import BLOCK, reference
from tests.engine_core.serving import CPU, Serving, adapt, greedy, seeded

MAX_TOKENS = 10
NATIVE_BLOCK = 16  # what the C++ kernel takes; the reference takes any size, and a small one has more borders
SHARED = {BLOCK: 3, NATIVE_BLOCK: 2}  # full blocks of the prefix that some prompts share
OUTPUT = {BLOCK: MAX_TOKENS, NATIVE_BLOCK: 20}  # enough to grow by more than a block
TIGHT = {BLOCK: 1 + 11, NATIVE_BLOCK: 1 + 6}  # blocks that do not hold four of the prompts with their outputs


def prompts_of(rng: random.Random, block: int = BLOCK) -> list[list[int]]:
    """Some alone, some that share a prefix of full blocks, one shorter than a block."""
    shared = [rng.randrange(3, VOCAB) for _ in range(SHARED[block] * block + 1)]
    return [
        [rng.randrange(3, VOCAB) for _ in range(29)],
        [*shared, 5, 6, 7],
        [*shared, 8],
        shared,
        [9],
        [rng.randrange(3, VOCAB) for _ in range(block)],
    ]


def serving(name: str, block: int = BLOCK, **changes: int | bool) -> Serving:
    options: dict[str, int | bool] = {"num_blocks": 128, "max_num_seqs": 4, "max_num_batched_tokens": 7, **changes}
    backend = ReferenceAttention(block, torch.float32, CPU) if block == BLOCK else CpuAttention(block, torch.float32)
    return Serving(adapt(build(config_of(name)), CONTEXT), backend, block, max_model_len=CONTEXT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [BLOCK, NATIVE_BLOCK], ids=["reference", "native"])
@pytest.mark.parametrize("name", SUPPORTED)
def test_tokens_are_those_of_transformers(name: str, block: int) -> None:
    if block == NATIVE_BLOCK and not CpuAttention.available(torch.float32):
        pytest.skip("no C++ compiler")
    prompts, count = prompts_of(random.Random(3), block), OUTPUT[block]
    model = build(config_of(name))
    expected = [reference(model, prompt, count) for prompt in prompts]
    assert len({token for out in expected for token in out}) > 5, "a degenerate model shows nothing"

    roomy = serving(name, block)
    assert roomy.run([greedy(prompt, count, i) for i, prompt in enumerate(prompts)]) == expected
    hits = roomy.scheduler.counters.prefix_hits
    assert roomy.run([greedy(prompt, count, i) for i, prompt in enumerate(prompts)]) == expected
    found = roomy.scheduler.counters.prefix_hits - hits
    assert found >= 3 * SHARED[block] * block, "the second round finds its prefixes"

    tight = serving(name, block, num_blocks=TIGHT[block], prefix_caching=False)
    assert tight.run([greedy(prompt, count, i) for i, prompt in enumerate(prompts)]) == expected
    assert tight.scheduler.counters.preemptions > 0


@pytest.mark.parametrize("budget", [4, 5, 11, 64])
def test_any_token_budget_gives_the_same(budget: int) -> None:
    prompts = prompts_of(random.Random(4))
    model = build(config_of("qwen3"))
    expected = [reference(model, prompt, MAX_TOKENS) for prompt in prompts]
    requests = [greedy(prompt, MAX_TOKENS, i) for i, prompt in enumerate(prompts)]
    assert serving("qwen3", max_num_batched_tokens=budget).run(requests) == expected


def test_sixty_four_at_once_are_as_one_by_one() -> None:
    rng = random.Random(5)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 40))] for _ in range(64)]
    options = {"num_blocks": 2000, "max_num_seqs": 64, "max_num_batched_tokens": 128}
    alone = serving("llama", **options, prefix_caching=False)
    one_by_one = [alone.run([greedy(prompt, 16, i)])[0] for i, prompt in enumerate(prompts)]
    together = serving("llama", **options)
    assert together.run([greedy(prompt, 16, i) for i, prompt in enumerate(prompts)]) == one_by_one


@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.5, "top_k": 7, "min_p": 0.02},
        {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    ],
    ids=str,
)
def test_seeded_tokens_do_not_depend_on_batch_mates(knobs: dict[str, float]) -> None:
    rng = random.Random(6)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(1, 30))] for _ in range(65)]
    options = {"num_blocks": 2000, "max_num_seqs": 65, "max_num_batched_tokens": 128}
    alone = serving("qwen2", **options).run([seeded(prompts[0], 20, seed=77, **knobs)])
    mates = [
        seeded(prompt, 20, i, seed=i, **(knobs if i % 2 else {"temperature": 0.9}))
        for i, prompt in enumerate(prompts[1:], 1)
    ]
    among = serving("qwen2", **options).run([*mates[:32], seeded(prompts[0], 20, 900, seed=77, **knobs), *mates[32:]])
    assert among[32] == alone[0]
    others = {
        tuple(serving("qwen2", **options).run([seeded(prompts[0], 20, seed=seed, **knobs)])[0]) for seed in (1, 2)
    }
    assert tuple(alone[0]) not in others, "the seed has no effect"


def test_a_replay_continues_the_same_sequence() -> None:
    """As after an engine's death: prompt and what was already seen, to an engine that has never met the request."""
    knobs = {"temperature": 1.0, "frequency_penalty": 0.4, "repetition_penalty": 1.1}
    prompt = [5, 9, 77, 41, 8, 90]
    undisturbed = serving("llama").run([seeded(prompt, 24, seed=3, **knobs)])[0]
    for cut in (1, 7, 23):
        request = seeded(prompt, 24, seed=3, **knobs)
        request.tokens.extend(undisturbed[:cut])
        assert serving("llama").run([request])[0] == undisturbed
