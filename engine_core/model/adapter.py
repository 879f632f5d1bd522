"""An unmodified transformers model driven with one flat batch: token ids and positions in, logits out, keys and values
in a paged cache. Knows which layers there are and what they need; knows nothing of requests, sampling or scheduling.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from engine_core.attention import AttentionBackend, AttentionPlan, LayerCache, LayerGeometry
from engine_core.errors import UnsupportedModel
from engine_core.model.loader import LoadedModel
from engine_core.model.port import AttentionPort, Receiver
from engine_core.model.probe import (
    NEVER_CALLS,
    Recorder,
    SelfAttention,
    check_independence,
    check_layers,
    refusal,
    sample_tokens,
    sinks_of,
)
from engine_core.model.quirks import TemperatureTuning, freeze_rope, take_temperature_tuning


class PagedAttention:
    """The receiver of one step: writes keys and values into the layers' caches and attends over them."""

    def __init__(
        self,
        backend: AttentionBackend,
        caches: Sequence[LayerCache],
        geometries: Sequence[LayerGeometry],
        plan: AttentionPlan,
        tunings: Sequence[TemperatureTuning | None],
        dtype: torch.dtype,
    ) -> None:
        self._backend = backend
        self._caches = caches
        self._geometries = geometries
        self._plan = plan
        self._tunings = tunings
        self._dtype = dtype
        self._layer = 0
        backend.begin(plan)

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        layer = self._layer  # layers call in the order in which the probe met them
        self._layer += 1
        tuning = self._tunings[layer]
        if tuning is not None:
            query = (query * tuning.factors(self._plan.positions)[:, None, None]).to(query.dtype)
        asked, used = query.dtype, self._dtype  # a norm or rotary embedding may have left the model's own behind
        output = self._backend.attend(
            self._caches[layer],
            self._geometries[layer],
            query.to(used),
            key.to(used),
            value.to(used),
            sinks_of(options),
        )
        return output.to(asked)


class ModelAdapter:
    """`geometries` has one entry per attention layer, `vocab_size` is the width of the logits."""

    def __init__(self, loaded: LoadedModel, max_model_len: int) -> None:
        """Probes the model. Raises UnsupportedModel if it can't be shown to run on a flat batch."""
        self.config = loaded.config
        self.dtype = loaded.dtype
        self.device = loaded.device
        self._model = loaded.module
        self._selects_rows = "logits_to_keep" in inspect.signature(loaded.module.forward).parameters
        freeze_rope(loaded.module, max_model_len)
        self._port = AttentionPort(loaded.module)
        self.geometries, self._tunings, self.vocab_size = self._probe(max_model_len)

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    def forward(
        self,
        input_ids: torch.Tensor,  # [T] int64
        plan: AttentionPlan,
        logits_rows: torch.Tensor,  # [R] int64, indices into the batch
        backend: AttentionBackend,
        caches: Sequence[LayerCache],
    ) -> torch.Tensor:
        """Runs the step that `plan` describes. Returns the logits [R, vocab_size] float32 after those tokens."""
        paged = PagedAttention(backend, caches, self.geometries, plan, self._tunings, self.dtype)
        return self._run(paged, input_ids, plan.positions, logits_rows)

    def rehearse(self, num_tokens: int, num_rows: int) -> None:
        """A step of this size without a cache, for the memory and the kernels that it takes."""
        ids, positions = sample_tokens(num_tokens, self.vocab_size, self.device)
        with torch.inference_mode():
            self._run(SelfAttention(), ids, torch.zeros_like(positions), positions[:num_rows])

    def _run(
        self, receiver: Receiver, input_ids: torch.Tensor, positions: torch.Tensor | None, rows: torch.Tensor
    ) -> torch.Tensor:
        options = {} if positions is None else {"position_ids": positions[None]}
        if self._selects_rows:
            options["logits_to_keep"] = rows
        with self._port.open(receiver):
            output = self._model(input_ids=input_ids[None], use_cache=False, **options)
        logits: torch.Tensor = output.logits[0]
        return (logits if self._selects_rows else logits[rows]).float()

    def _probe(self, max_model_len: int) -> tuple[tuple[LayerGeometry, ...], tuple[TemperatureTuning | None, ...], int]:
        recorder = Recorder()
        ids, positions = sample_tokens(2, self.config.get_text_config().vocab_size, self.device)
        try:
            with torch.inference_mode():
                self._run(recorder, ids, positions, positions)
                geometries = check_layers(recorder, self.config)
                tunings = tuple(take_temperature_tuning(module) for module in recorder.modules)
                vocab_size = check_independence(
                    partial(self._run, SelfAttention()), self.config, max_model_len, self.dtype, self.device
                )
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever an architecture does that was not made for this
            problem = "a flat batch fails in its forward pass" if recorder.modules else NEVER_CALLS
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise refusal(self.config, f"{problem} ({reason})") from error
        return geometries, tunings, vocab_size
