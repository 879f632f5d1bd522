"""Small random models of many architectures, as transformers builds them.

Weights are drawn wide (initializer_range), so that attention is far from uniform and a wrong window, mask or head order
changes tokens. `build` gives the same weights for the same name, however often it is called.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB: Final = 128
CONTEXT: Final = 64

_SIZES: Final[Mapping[str, Any]] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_EXPERTS: Final = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA: Final = {
    "num_key_value_heads": 6,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 24,
    "v_head_dim": 16,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_hidden_layers": 3,
}
_HALF_WINDOWED: Final = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_MULTI_HEAD: Final = {"num_key_value_heads": 6}
_GPT2: Final = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": CONTEXT, "n_inner": 64}
_YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}

SUPPORTED: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "llama": ("llama", {}),
    "llama-yarn": ("llama", {"rope_parameters": _YARN}),
    "llama-tied-bias": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-windowed": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "ministral": ("ministral", _HALF_WINDOWED),
    "ministral3": ("ministral3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", _HALF_WINDOWED | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", _HALF_WINDOWED | {"query_pre_attn_scalar": 8}),
    "gemma4_text": ("gemma4_text", _HALF_WINDOWED | {"hidden_size_per_layer_input": 8, "global_head_dim": 16}),
    "phi": ("phi", _MULTI_HEAD | {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phimoe": ("phimoe", _EXPERTS | {"sliding_window": None}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_bigcode": ("gpt_bigcode", _GPT2 | {"multi_query": True}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 48}),
    "biogpt": ("biogpt", {}),
    "mixtral": ("mixtral", _EXPERTS | {"sliding_window": 8}),
    "qwen2_moe": ("qwen2_moe", _EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", _EXPERTS),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", _HALF_WINDOWED),
    "olmoe": ("olmoe", _EXPERTS),
    "flex_olmo": ("flex_olmo", _EXPERTS),
    "gpt_oss": ("gpt_oss", _EXPERTS | _HALF_WINDOWED),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "starcoder2": ("starcoder2", {"sliding_window": 8}),
    "granite": ("granite", {"attention_multiplier": 0.3, "logits_scaling": 2.0}),
    "granitemoe": ("granitemoe", _EXPERTS | {"attention_multiplier": 0.3}),
    "granitemoeshared": ("granitemoeshared", _EXPERTS | {"attention_multiplier": 0.3, "shared_intermediate_size": 32}),
    "cohere": ("cohere", {"logit_scale": 1.0}),
    "cohere2": ("cohere2", _HALF_WINDOWED | {"logit_scale": 1.0}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", _MLA | {"num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "exaone4": ("exaone4", _HALF_WINDOWED | {"sliding_window_pattern": 2}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_moe": ("ernie4_5_moe", _EXPERTS | {"moe_num_experts": 4, "moe_k": 2}),
    "nemotron": ("nemotron", {}),
    "seed_oss": ("seed_oss", {}),
    "helium": ("helium", {}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {}),
    "deepseek_v2": ("deepseek_v2", _MLA | {"topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", _MLA),
    "minicpm3": ("minicpm3", _MLA),
    "persimmon": ("persimmon", _MULTI_HEAD),
    "arcee": ("arcee", {}),
    "llama4_text": (
        "llama4_text",
        _EXPERTS
        | {
            "num_hidden_layers": 4,
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 1, 1, 0],
            "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
            "attn_temperature_tuning": True,
            "floor_scale": 4,
            "attn_scale": 0.5,
            "intermediate_size_mlp": 64,
            "interleave_moe_layer_step": 2,
        },
    ),
    "minimax_m2": ("minimax_m2", _EXPERTS),
    "apertus": ("apertus", {}),
    "bitnet": ("bitnet", {}),
    "dots1": ("dots1", _MLA | {"num_key_value_heads": 2}),
    "vaultgemma": ("vaultgemma", _HALF_WINDOWED | {"query_pre_attn_scalar": 8}),
    "nanochat": ("nanochat", {}),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 16, "global_attn_every_n_layers": 2}),
    "cwm": ("cwm", _HALF_WINDOWED),
    "jais2": ("jais2", {}),
    "solar_open": ("solar_open", _MLA | {"num_key_value_heads": 2}),
    "afmoe": ("afmoe", _EXPERTS | _HALF_WINDOWED),
    "mimo_v2_flash": (
        "mimo_v2_flash",
        _EXPERTS | _HALF_WINDOWED | {"num_key_value_heads": 3, "v_head_dim": 4},
    ),
}


def config_of(name: str) -> Any:
    """A new configuration of one of SUPPORTED."""
    model_type, changes = SUPPORTED[name]
    return AutoConfig.for_model(model_type, **dict(_SIZES) | dict(changes))


def build(config: Any) -> PreTrainedModel:
    """A model in float32 with weights drawn from a fixed seed."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms, biases, sinks: near where they were, so that none is trivial
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.train(False)
    return model
