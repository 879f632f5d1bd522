"""How long a sequence may be: what a configuration says, in its many spellings, and what the operator asks for.

The rule is vLLM's: the smallest of the limits found, stretched by rotary scaling where the limit is from before it.
"""

from collections.abc import Iterator
from typing import Any, Final

from transformers import PreTrainedConfig

from engine_core.errors import CannotStart

_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_UNSCALED: Final = frozenset({"default", "longrope", "su", "llama3", "mrope", "proportional"})  # limits after scaling
_UNKNOWN: Final = 2048  # for models without any limit
_ABSURD: Final = 10**9  # tokenizers say 10**30 for "no limit"


def max_model_len(config: PreTrainedConfig, requested: int | None, tokenizer_limit: int | None = None) -> int:
    """Tokens, prompt and output together. Raises CannotStart if `requested` is beyond what the model allows; a model
    that names no limit allows anything and has 2,048 unless asked."""
    allowed = _allowed(config.get_text_config(), tokenizer_limit)
    if requested is None:
        return _UNKNOWN if allowed is None else allowed
    if allowed is not None and requested > allowed:
        raise CannotStart(
            f"--max-model-len {requested}: {config.model_type} was made for {allowed} tokens at most here"
        )
    return requested


def _allowed(text: PreTrainedConfig, tokenizer_limit: int | None) -> int | None:
    limits = list(_limits(text))
    if not limits:
        return tokenizer_limit if tokenizer_limit is not None and tokenizer_limit < _ABSURD else None
    limit = min(limits)
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")  # absent where parameters differ by layer: limits are stretched already
    if kind not in _UNSCALED and rope.get("factor"):
        base = rope.get("original_max_position_embeddings", limit) if kind == "yarn" else limit
        limit = int(base * rope["factor"])
    if tokenizer_limit is not None:
        limit = min(limit, tokenizer_limit)
    return limit


def _limits(text: PreTrainedConfig) -> Iterator[int]:
    for key in _KEYS:
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            yield value
