"""Trains the built-in model from nothing: `python -m engine_core.tiny.train [--out DIR]`.

Tokenizer first, then a Llama of about three million weights on documents drawn from `conversations`. All seeds are
fixed; on the same machine and library versions a second run gives the same files. Two CPU cores, Muon and AdamW,
cosine to zero, bf16 autocast, saved in bf16. Knows nothing of the held-out questions; `evaluate` does.
"""

import argparse
import itertools
import math
import random
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine_core.tiny import MODEL_PATH
from engine_core.tiny.conversations import Conversations, Document, Segment
from engine_core.tiny.corpus import load_corpus
from engine_core.tiny.tokenizer import MAX_POSITIONS, SPECIAL_TOKENS, special_ids, train_tokenizer

SEED = 17
STEPS = 2400
BATCH_TOKENS = 4096
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 40
DECISIVE_WEIGHTS = (8.0, 6.0, 4.0, 2.0)  # of the first tokens of an answer: the rest is soon known by heart
TOKENIZER_DOCUMENTS = 20_000
DOCUMENTS_PER_SORT = 1024
RESPELT_SHARE = 0.25  # of the questions: with a word cut in two, so that its parts get a meaning of their own


Example = tuple[list[int], list[float]]  # token ids and the loss weight of each


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the words of the first documents, without the special tokens between them."""
    documents = itertools.islice(Conversations(load_corpus(), SEED).documents(), TOKENIZER_DOCUMENTS)
    marks = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    return train_tokenizer(marks.sub("", text) for document in documents for text, *_ in document)


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    end_of_text, im_end = special_ids(tokenizer)
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=end_of_text,
        eos_token_id=im_end,
        pad_token_id=end_of_text,
    )


def examples(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Example]:
    """Endless training examples, cut at the model's length."""
    rng = random.Random(seed + 1)

    @lru_cache(maxsize=4096)
    def encode(text: str) -> list[int]:
        return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def pieces(segment: Segment) -> list[str]:
        if not segment.asked or rng.random() > RESPELT_SHARE:
            return [segment.text]
        cuts = sorted(rng.randrange(len(segment.text) + 1) for _ in range(rng.choice([1, 1, 2])))
        return [segment.text[start:end] for start, end in itertools.pairwise([0, *cuts, len(segment.text)])]

    def example(document: Document) -> Example:
        ids: list[int] = []
        weights: list[float] = []
        for segment in document:
            part = [token for piece in pieces(segment) for token in encode(piece)]
            ids += part
            first = DECISIVE_WEIGHTS[: len(part)] if segment.decisive else ()
            weights += [segment.weight * factor for factor in (*first, *[1.0] * (len(part) - len(first)))]
        return ids[:MAX_POSITIONS], weights[:MAX_POSITIONS]

    return map(example, Conversations(load_corpus(), seed).documents())


def batches(source: Iterator[Example], rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids [B, T], weights [B, T]), BATCH_TOKENS or fewer each: examples of similar length, padded on the right."""
    while True:
        chunk = sorted(itertools.islice(source, DOCUMENTS_PER_SORT), key=lambda example: len(example[0]))
        groups: list[list[Example]] = [[]]
        for example in chunk:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from map(_pad, groups)


def _pad(group: list[Example]) -> tuple[Tensor, Tensor]:
    length = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    for row, (tokens, token_weights) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(tokens)] = torch.tensor(token_weights)
    return ids, weights


def loss_of(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of the next token. Padding needs no mask: it lies right of everything that counts."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[counted]).float()
    losses = nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    weight = weights[:, 1:][counted]
    return (losses * weight).sum() / weight.sum()


def learning_rate(step: int) -> float:
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers: it learns in fewer steps than AdamW, which takes the rest."""
    layers = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    embedding = [model.model.embed_tokens.weight]
    groups = [{"params": embedding, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(layers, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True),
    ]


def train(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The trained model in fp32."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(make_config(tokenizer))
    model.set_attn_implementation("eager")  # for short sequences faster on a CPU than torch's fused attention
    optimizers = make_optimizers(model)
    source = batches(examples(tokenizer, SEED + 1), random.Random(SEED))
    started, tokens, recent = time.monotonic(), 0, 0.0
    for step, (ids, weights) in enumerate(itertools.islice(source, STEPS)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, ids, weights)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        recent = 0.9 * recent + 0.1 * loss.item() if step else loss.item()
        if step % 50 == 49:
            wall_s = time.monotonic() - started
            print(f"step {step + 1}/{STEPS}  loss {recent:.3f}  {tokens:,} tokens  {wall_s:.0f} s", flush=True)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model, which is in bf16, the tokenizer and the generation defaults to the folder `out`."""
    end_of_text, im_end = special_ids(tokenizer)
    defaults: Any = GenerationConfig  # untyped in transformers
    model.generation_config = defaults(
        bos_token_id=end_of_text,
        eos_token_id=[im_end, end_of_text],  # <|im_end|> ends a chat turn, <|endoftext|> a story
        pad_token_id=end_of_text,
        do_sample=True,
        temperature=0.3,
    )
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train tokenwire-tiny.")
    parser.add_argument("--out", type=Path, default=MODEL_PATH, help="folder to write (default: the package's own)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    started = time.monotonic()
    tokenizer = make_tokenizer()
    model = train(tokenizer)
    nn.Module.to(model, torch.bfloat16)
    save(model, tokenizer, options.out)
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{count:,} weights, {len(tokenizer)} tokens, {time.monotonic() - started:.0f} s, written to {options.out}")


if __name__ == "__main__":
    main()
