"""The model card: everything of a model folder that frontends need, so that they need no model files themselves."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils.hub import cached_file

from engine_core.errors import CannotStart
from engine_core.model.source import ModelSource
from protocol.messages import ModelCard, SamplingDefaults

_NAMED_TOKENS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
_TEMPERATURE_MAX: Final = 2.0  # of protocol.sampling
_TOP_K_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as frontends need it. `text` is a whole tokenizer.json; empty if the model has none."""

    text: str = ""
    chat_template: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()
    eos_token_id: int | None = None
    max_length: int | None = None


def load_tokenizer(source: ModelSource, *, optional: bool = False) -> TokenizerFiles:
    """What transformers would tokenize with, as one tokenizer.json. Raises CannotStart if the model has no fast
    tokenizer and it is not `optional`; without one a model takes token ids only."""
    try:
        auto: Any = AutoTokenizer
        tokenizer = auto.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # each tokenizer class fails in its own way on files that are absent or broken
        if optional:
            return TokenizerFiles()
        reason = str(error).strip().partition("\n")[0]
        raise CannotStart(f"{source.path}: the tokenizer can't be loaded: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        if optional:
            return TokenizerFiles()
        raise CannotStart(f"{source.path}: the model has no fast tokenizer (tokenizer.json)")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    named = ((name, getattr(tokenizer, name, None)) for name in _NAMED_TOKENS)
    return TokenizerFiles(
        text=backend.to_str(),
        chat_template=_default_template(tokenizer.chat_template),
        special_tokens=tuple((name, str(token)) for name, token in named if token is not None),
        eos_token_id=tokenizer.eos_token_id,
        max_length=int(tokenizer.model_max_length) if tokenizer.model_max_length else None,
    )


def build_card(
    source: ModelSource,
    config: PreTrainedConfig,
    tokenizer: TokenizerFiles,
    *,
    name: str,
    created: int,
    vocab_size: int,
    max_model_len: int,
    chat_template: str | None = None,
) -> ModelCard:
    """`vocab_size` is the width of the logits, `chat_template` a file that replaces the model's own, `created` is in
    unix seconds. Raises CannotStart if that file or generation_config.json can't be read."""
    generation = _generation_config(source)
    text = tokenizer.text.encode()
    return ModelCard(
        name=name,
        created=created,
        tokenizer=text,
        tokenizer_digest=hashlib.blake2b(text, digest_size=16).digest(),
        chat_template=tokenizer.chat_template if chat_template is None else _read_template(chat_template),
        special_tokens=dict(tokenizer.special_tokens),
        eos_token_ids=_eos_token_ids(generation, config, tokenizer, vocab_size),
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        defaults=_defaults(generation),
    )


def _generation_config(source: ModelSource) -> dict[str, Any]:
    """What generation_config.json says itself, without transformers' own defaults; empty if there is none."""
    path = cached_file(
        source.path,
        "generation_config.json",
        revision=source.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise CannotStart(f"{path}: can't be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _eos_token_ids(
    generation: dict[str, Any], config: PreTrainedConfig, tokenizer: TokenizerFiles, vocab_size: int
) -> list[int]:
    """generation_config's, else the configuration's, and like vLLM always the tokenizer's own: finetuned models often
    keep the base model's generation_config."""
    own = generation.get("eos_token_id")
    if own is None:
        own = getattr(config, "eos_token_id", None)
    if own is None:
        own = getattr(config.get_text_config(), "eos_token_id", None)
    ids = list(own) if isinstance(own, (list, tuple)) else [own]
    ids.append(tokenizer.eos_token_id)
    return sorted({token for token in ids if isinstance(token, int) and 0 <= token < vocab_size})


def _defaults(generation: dict[str, Any]) -> SamplingDefaults:
    """What the file recommends, cut to what a request may ask for; nothing if it recommends greedy decoding."""
    if generation.get("do_sample") is False:
        return SamplingDefaults()
    plain = SamplingDefaults()
    temperature = _number(generation, "temperature", plain.temperature)
    top_p = _number(generation, "top_p", plain.top_p)
    penalty = _number(generation, "repetition_penalty", plain.repetition_penalty)
    return SamplingDefaults(
        temperature=min(max(temperature, 0.0), _TEMPERATURE_MAX),
        top_p=top_p if 0.0 < top_p <= 1.0 else plain.top_p,
        top_k=max(0, min(int(_number(generation, "top_k", plain.top_k)), _TOP_K_MAX)),
        min_p=min(max(_number(generation, "min_p", plain.min_p), 0.0), 1.0),
        repetition_penalty=penalty if 0.0 < penalty <= 10.0 else plain.repetition_penalty,
    )


def _number(generation: dict[str, Any], key: str, default: float) -> float:
    """What the file says, if it is a number."""
    value = generation.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return default
    return float(value)


def _default_template(template: str | dict[str, str] | None) -> str | None:
    return template.get("default") if isinstance(template, dict) else template


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CannotStart(f"--chat-template {path}: {reason}") from error
