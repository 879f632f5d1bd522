"""What can't be driven by a flat batch is refused at load, in one line that names the architecture, and never run."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from engine_core.attention import LayerGeometry
from engine_core.errors import CannotStart, UnsupportedModel
from engine_core.model.probe import NEVER_CALLS
from tests.engine_core.architectures import build, config_of
from tests.engine_core.driver import Engine

TINY: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": (TINY, NEVER_CALLS),
    "gptj": (TINY | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, NEVER_CALLS),
    "bloom": (TINY, NEVER_CALLS),
    "mpt": (TINY | {"d_model": 32, "n_heads": 4, "n_layers": 2}, NEVER_CALLS),
    "codegen": (TINY | {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, NEVER_CALLS),
    "gpt_neo": (TINY | {"attention_types": [[["global", "local"], 1]], "num_heads": 4, "num_layers": 2}, NEVER_CALLS),
    "xglm": (TINY | {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 32}, NEVER_CALLS),
    "mamba": (TINY, NEVER_CALLS),
    "rwkv": (TINY | {"attention_hidden_size": 32}, NEVER_CALLS),
    "jamba": (TINY | {"num_key_value_heads": 2, "num_experts": 2, "intermediate_size": 32}, "attention interface"),
    "falcon_h1": (
        TINY
        | {"num_key_value_heads": 2, "intermediate_size": 32, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
        "hybrid",
    ),
    "qwen3_next": (
        TINY | {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
        NEVER_CALLS,
    ),
    "diffllama": (TINY | {"num_key_value_heads": 2, "intermediate_size": 32}, "2 layers made 4 calls"),
    "doge": (TINY | {"num_key_value_heads": 2, "intermediate_size": 32}, "attention takes attention_mask"),
    "bert": (TINY, "not causal"),
    "bart": (TINY | {"d_model": 32, "decoder_layers": 2}, "influence each other"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", REFUSED)
def test_architectures_that_do_not_fit_are_refused(model_type: str) -> None:
    settings, reason = REFUSED[model_type]
    model = build(AutoConfig.for_model(model_type, **settings))
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        Engine(model, max_model_len=32)
    message = str(caught.value)
    assert message.startswith(model_type)
    assert "\n" not in message
    assert isinstance(caught.value, CannotStart)


class NeighbourMixing(nn.Module):
    """A feed-forward block that also looks at the token before, as a convolution would."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.inner(hidden + 0.3 * hidden.roll(1, dims=1)))


def test_tokens_that_meet_outside_attention_are_noticed() -> None:
    model = build(config_of("llama"))
    model.model.layers[1].mlp = NeighbourMixing(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModel, match="influence each other outside attention"):
        Engine(model)


def test_rotary_scaling_that_follows_the_batch_is_noticed_if_it_was_not_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of("llama")
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    monkeypatch.setattr("engine_core.model.adapter.freeze_rope", lambda model, length: None)
    with pytest.raises(UnsupportedModel, match="influence each other"):
        Engine(build(config), max_model_len=256)


@pytest.mark.filterwarnings("ignore")
def test_positions_that_start_elsewhere_are_noticed() -> None:
    """A RoBERTa decoder counts its positions from pad_token_id + 1."""
    config = AutoConfig.for_model("roberta", **TINY, is_decoder=True, pad_token_id=0, max_position_embeddings=64)
    with pytest.raises(UnsupportedModel, match="positions do not count from 0"):
        Engine(build(config), max_model_len=32)


def test_a_layer_that_differs_from_its_configuration_is_refused() -> None:
    model = build(config_of("gemma2"))
    model.model.layers[0].self_attn.sliding_window = None
    with pytest.raises(UnsupportedModel, match="layer 0 is a sliding_attention layer"):
        Engine(model)


def test_the_geometry_is_what_each_layer_asked_for() -> None:
    gemma = Engine(build(config_of("gemma2"))).adapter
    assert gemma.geometries == (
        LayerGeometry(6, 2, 8, 8, pytest.approx(8**-0.5), window=8, softcap=5.0),  # type: ignore[arg-type]
        LayerGeometry(6, 2, 8, 8, pytest.approx(8**-0.5), window=None, softcap=5.0),  # type: ignore[arg-type]
    )
    assert gemma.vocab_size == 128
    deepseek = Engine(build(config_of("deepseek_v3"))).adapter.geometries
    assert {(g.kv_heads, g.key_dim, g.value_dim) for g in deepseek} == {(6, 24, 16)}
    oss = Engine(build(config_of("gpt_oss"))).adapter.geometries
    assert [(g.sinks, g.window) for g in oss] == [(True, 8), (True, None)]
    scout = Engine(build(config_of("llama4_text"))).adapter.geometries
    assert [(g.window, g.chunk) for g in scout] == [(None, 8)] * 3 + [(None, None)]
