"""A few tiny forward passes at load that find out what a model's layers need, and whether it may be driven at all.

The receiver here lets every token attend to itself alone, weighted by its own query and key. Under it a model whose
tokens meet only in attention is a function of each token and its position; so the same tokens in another order, beside
a token at the far end of the context, must all have the logits that they had before. State-space layers, convolutions,
batch-wide rotary scaling and positions counted from the start of the batch all fail that. And what the model makes of
positions 0, 1, 2, … must be what it makes of none, or its own positions start elsewhere.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedConfig

from engine_core.attention import LayerGeometry
from engine_core.errors import UnsupportedModel

# Input ids [T], positions [T] or the model's own, rows [R] → logits [R, V]
Forward = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor]

NEVER_CALLS: Final = "its layers never call transformers' attention interface"
_TOKENS: Final = 8
_STRIDE: Final = 64  # between their positions, where the context is long enough
_TOLERANCE: Final = {torch.float32: 1e-3}  # of a token's largest logit
_TOLERANCE_HALF: Final = 0.05  # the same for 16-bit types, which round deep models apart
_SINKS: Final = "s_aux"
_HARMLESS: Final = frozenset({"position_ids", "cache_position", "position_embeddings"})  # tensors we have otherwise
_SELECTIVE: Final = frozenset({"indices", "block_indices", "position_bias", "sinks"})  # refused even while unused
_LAYER_TYPES: Final = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


class SelfAttention:
    """A receiver without a cache: each token's answer is its own value, scaled by where its query and key point (a
    cosine with the diagonal), which makes it depend on both and on their rotary angles. Stands in for the real one
    where only shapes and the rest of the model matter."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        weight = 1.0 + 0.5 * _cosine(query) + 0.5 * _cosine(key).repeat_interleave(groups, dim=1)
        return (value.repeat_interleave(groups, dim=1) * weight).to(query.dtype)


class Recorder(SelfAttention):
    """Writes down what every call needs. `problem` is something that we could not honour."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.geometries: list[LayerGeometry] = []
        self.problem: str | None = None

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        self.problem = self.problem or _problem(module, query, key, value, options)
        scale = options.get("scaling")
        self.modules.append(module)
        self.geometries.append(
            LayerGeometry(
                query_heads=query.shape[1],
                kv_heads=key.shape[1],
                key_dim=key.shape[2],
                value_dim=value.shape[2],
                scale=float(scale) if scale is not None else 1.0 / math.sqrt(query.shape[2]),
                window=options.get("sliding_window"),
                softcap=options.get("softcap"),
                sinks=sinks_of(options) is not None,
            )
        )
        return super().attend(module, query, key, value, options)


def sinks_of(options: Mapping[str, Any]) -> torch.Tensor | None:
    """The layer's learned sink logits [query_heads], if it has any."""
    sinks: torch.Tensor | None = options.get(_SINKS)
    return sinks


def check_layers(recorder: Recorder, config: PreTrainedConfig) -> tuple[LayerGeometry, ...]:
    """The geometry of each layer, in the order of its calls. Raises UnsupportedModel unless each of the model's decoder
    layers called exactly once and asked for nothing unknown."""
    layers = config.get_text_config().num_hidden_layers
    calls = len(recorder.modules)
    if calls == 0:
        raise refusal(config, NEVER_CALLS)
    if calls != layers or len({id(module) for module in recorder.modules}) != calls:
        raise refusal(config, f"{layers} layers made {calls} calls to transformers' attention interface, not one each")
    if recorder.problem is not None:
        raise refusal(config, recorder.problem)
    return tuple(_with_layer_types(recorder.geometries, config))


def check_independence(
    forward: Forward, config: PreTrainedConfig, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> int:
    """The width of the logits. Raises UnsupportedModel if a token's logits depend on more than itself, its position and
    attention. `forward` must run with SelfAttention as its receiver."""
    vocab = config.get_text_config().vocab_size
    ids, indices = sample_tokens(min(_TOKENS, max_model_len), vocab, device)
    positions = indices * max(1, min(_STRIDE, max_model_len // (4 * _TOKENS)))
    far = torch.tensor([max_model_len - 1], device=device)
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_HALF)

    alone = forward(ids, positions, indices)
    if bool(alone.isnan().any()):
        raise UnsupportedModel(f"{config.model_type}: the weights are broken: the model's logits are no numbers")
    mixed = forward(torch.cat((ids.flip(0), ids[:1])), torch.cat((positions.flip(0), far)), indices).flip(0)
    if _difference(mixed, alone) > tolerance:
        raise refusal(config, "its tokens influence each other outside attention (recurrent state, convolution, …)")
    if _difference(forward(ids, indices, indices), forward(ids, None, indices)) > tolerance:
        raise refusal(config, "its positions do not count from 0")
    return alone.shape[-1]


def sample_tokens(count: int, vocab: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [count] spread over the vocabulary, and 0 … count - 1."""
    indices = torch.arange(count, device=device)
    return (indices * 7919 + 11) % vocab, indices


def refusal(config: PreTrainedConfig, reason: str) -> UnsupportedModel:
    return UnsupportedModel(f"{config.model_type}: this architecture is not supported: {reason}")


def _problem(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any]
) -> str | None:
    """What of a call would change its result and is not understood here."""
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        return "its attention is not causal"
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        return "its attention has other keys than one per token"
    for name, option in options.items():
        if name in _SELECTIVE or (isinstance(option, torch.Tensor) and name != _SINKS and name not in _HARMLESS):
            return f"its attention takes {name}"
    return None


def _with_layer_types(geometries: Sequence[LayerGeometry], config: PreTrainedConfig) -> list[LayerGeometry]:
    """Chunked layers say so only in the configuration. Windows are on the call; where call and configuration differ,
    neither is to be trusted."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return list(geometries)
    settled: list[LayerGeometry] = []
    for index, (geometry, kind) in enumerate(zip(geometries, kinds, strict=True)):
        if kind not in _LAYER_TYPES:
            raise refusal(config, f"layer {index} is of type {kind}")
        if kind == "chunked_attention":
            settled.append(dataclasses.replace(geometry, window=None, chunk=int(text.attention_chunk_size)))
            continue
        if (kind == "sliding_attention") != (geometry.window is not None):
            raise refusal(config, f"layer {index} is a {kind} layer and asks for the window {geometry.window}")
        settled.append(geometry)
    return settled


def _difference(logits: torch.Tensor, others: torch.Tensor) -> float:
    """Of two times [T, V]: the largest per token, relative to its largest logit. The median over the tokens, because in
    a mixture of experts rounding alone may send single ones elsewhere."""
    logits, others = logits.nan_to_num(), others.nan_to_num()
    largest = others.abs().amax(dim=-1).clamp_min(1e-6)
    return float(((logits - others).abs().amax(dim=-1) / largest).median())


def _cosine(heads: torch.Tensor) -> torch.Tensor:
    """Of each head with the diagonal: [T, H, D] → [T, H, 1]."""
    length: torch.Tensor = torch.linalg.vector_norm(heads, dim=-1, keepdim=True) * math.sqrt(heads.shape[-1])
    return heads.sum(-1, keepdim=True) / length.clamp_min(1e-6)
