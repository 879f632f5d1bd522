"""`python -m tests.gpu`: the engine on a GPU, checked against transformers and measured, in one call.

Needs CUDA and nothing else; CI has none. Prints a line per check and a table, and exits with 1 if a check fails.
"""

import random
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine_core.attention.select import select
from engine_core.request import Request
from protocol.sampling import SamplingParams
from tests.engine_core.architectures import CONTEXT, VOCAB, build, config_of
from tests.engine_core.serving import Serving, adapt, greedy, seeded

BLOCK = 16
CHECKED = ("llama", "qwen3", "gemma2", "gpt_oss", "mistral", "mixtral", "deepseek_v3", "gpt2", "phi3", "llama4_text")
MEASURED = LlamaConfig(
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, head_dim=64, max_position_embeddings=8192,
)  # fmt: skip


def serving(model: torch.nn.Module, context: int, blocks: int, seqs: int) -> Serving:
    adapter = adapt(model, context)  # type: ignore[arg-type]
    backend = select(adapter.device, adapter.dtype, BLOCK)
    return Serving(
        adapter,
        backend,
        BLOCK,
        max_model_len=context,
        num_blocks=blocks,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(seqs, 2048),
    )


def expected(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy tokens, on the same device."""
    ids = torch.tensor([prompt], device="cuda")
    mask = torch.ones_like(ids)
    output = model.generate(  # type: ignore[operator]
        ids, attention_mask=mask, do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0
    )
    out: list[int] = output[0, len(prompt) :].tolist()
    return out


def same_as_transformers(name: str) -> bool:
    rng = random.Random(1)
    model = build(config_of(name)).to("cuda")
    prompts = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 40))] for _ in range(12)]
    wanted = [expected(model, prompt, 12) for prompt in prompts]  # first: afterwards the model is ours
    outputs = serving(model, CONTEXT, 200, 8).run([greedy(prompt, 12, i) for i, prompt in enumerate(prompts)])
    return outputs == wanted


def seeds_do_not_see_their_mates() -> bool:
    def request(handle: int) -> Request:
        return seeded([5, 9, 77, 41], 20, handle, seed=7, temperature=1.0, top_p=0.95)

    mates = [seeded([i + 3] * (i % 9 + 1), 20, i, seed=i, temperature=1.2) for i in range(63)]
    alone = serving(build(config_of("llama")).to("cuda"), CONTEXT, 400, 64).run([request(0)])[0]
    among = serving(build(config_of("llama")).to("cuda"), CONTEXT, 400, 64).run([*mates, request(99)])[-1]
    return alone == among


def prompts_score_as_in_a_plain_forward(name: str, device: str = "cuda") -> bool:
    """Log probabilities of prompts, within 1e-4, with steps overlapped."""
    rng = random.Random(2)
    model = build(config_of(name)).to(device)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (40, 17, 2, 1)]
    with torch.inference_mode():
        wanted = [
            model(input_ids=torch.tensor([prompt], device=device)).logits[0].log_softmax(-1) for prompt in prompts
        ]
    engine = serving(model, CONTEXT, 200, 8)
    engine.overlap = 1
    engine.scheduler.max_num_scored = 9
    sampling = SamplingParams(max_tokens=4, temperature=0.0, prompt_logprobs=5)
    requests = [Request(i, f"scored-{i}", prompt, sampling) for i, prompt in enumerate(prompts)]
    engine.run(requests)
    for request, prompt, rows in zip(requests, prompts, wanted, strict=True):
        told = [entry for portion in request.prompt_logprobs or () for entry in portion.entries(5)]
        own = rows[range(len(prompt) - 1), prompt[1:]].tolist()
        best = rows[:-1].topk(5).values.flatten().tolist()
        found = [entry.logprob for entry in told] + [logprob for entry in told for logprob in entry.top_logprobs]
        if len(found) != len(own + best) or any(abs(a - b) > 1e-4 for a, b in zip(found, own + best, strict=True)):
            return False
    return True


def measure() -> None:
    """Decode steps of a 1.2B Llama in bfloat16 with random weights, whole step by wall clock."""
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(MEASURED, dtype=torch.bfloat16)
    print(f"{'sequences':>10} {'ms per step':>12} {'tokens/s':>10}")
    for seqs in (1, 8, 32, 128):
        engine = serving(model, 2048, seqs * 48 + 1, seqs)
        engine.run([greedy([7] * 512, 8, i) for i in range(seqs)])
        torch.cuda.synchronize()
        started_s, steps = time.monotonic(), engine.steps
        engine.run([greedy([7] * 512, 64, i) for i in range(seqs)])
        seconds = time.monotonic() - started_s
        print(f"{seqs:>10} {1000 * seconds / (engine.steps - steps):>12.2f} {seqs * 64 / seconds:>10.0f}")


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here")
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    checks: dict[str, Callable[[], bool]] = {
        f"greedy tokens of {name}": lambda name=name: same_as_transformers(name)  # type: ignore[misc]
        for name in CHECKED
    }
    checks["log probabilities of prompts"] = lambda: prompts_score_as_in_a_plain_forward("llama")
    checks["seeded tokens alone and among 64"] = seeds_do_not_see_their_mates
    failed = 0
    for title, check in checks.items():
        good = check()
        failed += not good
        print(f"{'ok' if good else 'FAILED':8}{title}", flush=True)
    measure()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
