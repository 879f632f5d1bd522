"""The one place where a transformers model meets our attention: a function in its AttentionInterface under a name of
our own. No mask function is registered under that name, so transformers never builds a mask.

What a call is to do depends on the forward pass it belongs to, which travels here and not through the model's keyword
arguments, since some models drop those.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel


class Receiver(Protocol):
    """Answers the attention calls of one forward pass, in the order of the layers."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,  # [T, query_heads, key_dim]
        key: torch.Tensor,  # [T, kv_heads, key_dim]
        value: torch.Tensor,  # [T, kv_heads, value_dim]
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """[T, query_heads, value_dim]. `options` is everything else that the model said: scaling, sliding_window, …"""


class AttentionPort:
    """One model's attention calls, handed to whichever receiver is open."""

    def __init__(self, model: PreTrainedModel) -> None:
        """From here on `model` runs only inside `open`."""
        self._receiver: Receiver | None = None
        name = f"tokenwire_{id(self):x}"  # a name per model: several may live in one process
        AttentionInterface.register(name, self._answer)
        for module in model.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = name

    @contextmanager
    def open(self, receiver: Receiver) -> Iterator[None]:
        """Attention calls within go to `receiver`."""
        self._receiver = receiver
        try:
            yield
        finally:
            self._receiver = None

    def _answer(
        self,
        module: nn.Module,
        query: torch.Tensor,  # [1, query_heads, T, key_dim], as transformers lays it out
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        if self._receiver is None:
            raise RuntimeError("the model was run without a receiver for its attention calls")
        if attention_mask is not None:
            options["attention_mask"] = attention_mask
        queries, keys, values = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
        return self._receiver.attend(module, queries, keys, values, options)[None], None
