"""Small tokenizers of the two common kinds, and the cards and jobs that go with them."""

from collections.abc import Sequence
from itertools import pairwise

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from api_server.detokenize import Vocabulary
from api_server.job import Job
from api_server.submission import Submission
from protocol.messages import Delta, FinishReason, Limits, ModelCard, TokenLogprobs
from protocol.sampling import SamplingParams

CORPUS = ["Hello world, how are you doing today? The end of the friend.", "naïve café 漢字かな 👩‍👩‍👧 🎉 Ünïcödé"] * 10
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LIMITS = Limits(kv_tokens=65_536, max_num_seqs=64, max_queued_requests=64, max_queued_tokens=0)


def byte_level() -> Tokenizer:
    """A trained byte-level BPE with special tokens, and added ones that are ordinary text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["foo bar", "zé", "日本"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return tokenizer


def sentencepiece(decoder: object | None = None) -> Tokenizer:
    """Pieces with a mark for spaces, and all 256 bytes as a fallback, decoded as Llama's unless `decoder` is given."""
    words = ["▁", "▁▁", "h", "e", "l", "o", "▁hello", "▁world", "漢", "é", "▁a▁b", "\ufffd"]
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
    }
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoder or decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens(["foo bar"])
    return tokenizer


def card(tokenizer: Tokenizer | None, **changes: object) -> ModelCard:
    fields: dict[str, object] = {
        "name": "tiny",
        "created": 1_700_000_000,
        "tokenizer": b"" if tokenizer is None else tokenizer.to_str().encode(),
        "tokenizer_digest": b"digest",
        "chat_template": TEMPLATE,
        "special_tokens": {"bos_token": "<|bos|>", "eos_token": "<|end|>"},
        "eos_token_ids": [1],
        "vocab_size": 512,
        "max_model_len": 256,
    }
    return ModelCard(**{**fields, **changes})  # type: ignore[arg-type]


def job(tokenizer: Tokenizer | None, prompts: Sequence[list[int]] = ([5],), n: int = 1, **options: object) -> Job:
    """A job with everything left to default but `options`; `min_tokens` goes to its sampling parameters."""
    min_tokens = options.pop("min_tokens", 0)
    submission = Submission(
        rid="chatcmpl-" + "0" * 32,
        prompts=list(prompts),
        n=n,
        sampling=SamplingParams(max_tokens=100, min_tokens=min_tokens),  # type: ignore[arg-type]
        seed=1,
    )
    fields: dict[str, object] = {"model": "tiny", "fingerprint": "fp_0", "created": 1_700_000_000, "stream": True}
    fields["ends"] = frozenset({1})
    return Job(submission=submission, vocabulary=Vocabulary(tokenizer), **{**fields, **options})  # type: ignore[arg-type]


def deltas(
    tokens: Sequence[int],
    cuts: Sequence[int] = (),
    finish: FinishReason | None = None,
    logprobs: Sequence[TokenLogprobs] | None = None,
) -> list[Delta]:
    """The tokens of sequence 0, split before each position in `cuts`."""
    borders = [0, *sorted({cut for cut in cuts if 0 < cut < len(tokens)}), len(tokens)]
    found = [
        Delta(0, start, list(tokens[start:end]), logprobs=None if logprobs is None else list(logprobs[start:end]))
        for start, end in pairwise(borders)
    ]
    found[-1].finish = finish
    return found
