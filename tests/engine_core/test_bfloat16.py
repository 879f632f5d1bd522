"""The built-in model in bfloat16: sixty-four streams at once against the same ones alone.

A batch of another size may round a matrix product differently in bfloat16, so two logits that are equal within that
rounding may change places. That, and nothing else, is let through here: where a token differs, the two candidates'
logits must lie within TIE of each other when the common prefix is computed in float32, and only the tokens up to there
are compared.
"""

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine_core.attention.select import select
from engine_core.model import loader
from engine_core.model.adapter import ModelAdapter
from engine_core.model.source import resolve
from engine_core.tiny import MODEL_PATH
from tests.engine_core.serving import CPU, Serving, greedy

CONTEXT = 2048
COUNT = 64
MAX_TOKENS = 48
TIE = 2**-5  # of the larger logit's size: eight bits of mantissa, less what six layers of rounding add up to
MAX_DIFFERENT = 3  # of the sixty-four; none, when this was written


def bfloat16() -> ModelAdapter:
    source = resolve(str(MODEL_PATH))
    config = loader.load_config(source)
    return ModelAdapter(loader.load(source, config, dtype=torch.bfloat16, device=CPU), CONTEXT)


def engine(adapter: ModelAdapter) -> Serving:
    return Serving(
        adapter,
        select(CPU, adapter.dtype, 16),
        16,
        max_model_len=CONTEXT,
        num_blocks=1000,
        max_num_seqs=COUNT,
        max_num_batched_tokens=512,
        prefix_caching=False,
    )


def prompts() -> list[list[int]]:
    """Questions with and without an answer in the training texts, and beginnings of stories."""
    tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
    words = ("fox", "robot", "queue", "batch", "token", "stream", "engine", "bear")
    texts = [
        f"What is a {words[i % 8]} {i}?" if i % 2 else f"Once upon a time {i} {words[i % 8]}s" for i in range(COUNT)
    ]
    return [tokenizer.encode(text).ids for text in texts]


def logits_after(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """The next token's logits [vocab_size], by transformers alone."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
    return logits


def test_sixty_four_at_once_are_as_one_by_one_but_for_ties() -> None:
    adapter = bfloat16()
    asked = prompts()
    alone = engine(adapter)
    one_by_one = [alone.run([greedy(prompt, MAX_TOKENS, i)])[0] for i, prompt in enumerate(asked)]
    together = engine(adapter).run([greedy(prompt, MAX_TOKENS, i) for i, prompt in enumerate(asked)])
    exact = AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)
    different = 0
    for prompt, expected, actual in zip(asked, one_by_one, together, strict=True):
        if expected == actual:
            continue
        different += 1
        at = next(i for i, (a, b) in enumerate(zip(expected, actual, strict=False)) if a != b)
        logits = logits_after(exact, [*prompt, *expected[:at]])
        a, b = float(logits[expected[at]]), float(logits[actual[at]])
        assert abs(a - b) <= TIE * max(abs(a), abs(b)), f"no tie: {a} against {b} after {at} tokens"
    assert different <= MAX_DIFFERENT
