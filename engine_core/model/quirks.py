"""What a few architectures compute from the whole batch instead of from a token and its position, set right at load.

All of it is recognised by what a module has, never by the model's name. What is missed here is still found by the probe
(engine_core.model.probe), which refuses a model whose tokens influence each other outside attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_FIXED: Final = "default"  # the rope type whose frequencies the forward pass leaves alone


@dataclass(frozen=True, slots=True)
class TemperatureTuning:
    """Llama 4's factor on the queries of layers without rotary embedding, a function of the position."""

    floor_scale: float
    attn_scale: float

    def factors(self, positions: torch.Tensor) -> torch.Tensor:
        """positions [T] → [T] float32; 1 + attn_scale * log(1 + floor((position + 1) / floor_scale))."""
        return torch.log1p(torch.floor((positions.float() + 1.0) / self.floor_scale)) * self.attn_scale + 1.0


def settle_model(model: PreTrainedModel) -> None:
    """No forward pass looks for padding in the input ids any more (a device sync per step in GPT-2 and others): a flat
    batch has none, and any id may stand anywhere in it."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _nothing  # type: ignore[method-assign]


def _nothing(*_: object) -> None:
    pass


def take_temperature_tuning(attention: nn.Module) -> TemperatureTuning | None:
    """Switches the layer's own off, which counts positions from the start of the batch, and returns what to apply to
    its queries instead."""
    if not getattr(attention, "attn_temperature_tuning", False) or getattr(attention, "use_rope", True):
        return None
    tuning = TemperatureTuning(float(attention.floor_scale), float(attention.attn_scale))  # type: ignore[arg-type]
    attention.attn_temperature_tuning = False  # type: ignore[assignment]
    return tuning


def freeze_rope(model: PreTrainedModel, max_model_len: int) -> None:
    """Fixes frequencies that would follow the longest position in the batch (longrope and dynamic NTK scaling): they
    become those of a sequence of `max_model_len` tokens, so that a request does not depend on its batch mates. It is
    what the models' own code would use at that length; shorter sequences differ from a run that is never that long."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str):
            module.rope_type = _freeze(module, kinds, None, max_model_len)  # type: ignore[assignment]
        elif isinstance(kinds, Mapping):
            module.rope_type = {  # type: ignore[assignment]
                layer_type: _freeze(module, kind, layer_type, max_model_len) for layer_type, kind in kinds.items()
            }


def _freeze(module: nn.Module, kind: str, layer_type: str | None, max_model_len: int) -> str:
    """Returns the rope type to go on with."""
    if kind != "longrope" and "dynamic" not in kind:
        return kind
    config: Any = module.config
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    prefix = "" if layer_type is None else f"{layer_type}_"
    current = getattr(module, f"{prefix}inv_freq")
    length = max_model_len
    if kind == "longrope":
        original = parameters["original_max_position_embeddings"]
        length = original + 1 if max_model_len > original else original
        if "short_mscale" in parameters and "long_mscale" in parameters:  # PhiMoE picks its scale by length too
            chosen = parameters["long_mscale" if length > original else "short_mscale"]
            parameters["short_mscale"] = parameters["long_mscale"] = chosen
    options = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config, current.device, seq_len=length, **options)
    current.copy_(frequencies)
    return _FIXED
