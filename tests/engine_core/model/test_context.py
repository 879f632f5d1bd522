from typing import Any

import pytest
from transformers import AutoConfig

from engine_core.errors import CannotStart
from engine_core.model.context import max_model_len

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
}


@pytest.mark.parametrize(
    ("model_type", "settings", "want"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("qwen2", {"max_position_embeddings": 32768, "rope_parameters": YARN}, 131072),
        ("deepseek_v3", {"max_position_embeddings": 131072, "rope_parameters": YARN}, 131072),
        ("llama", {"max_position_embeddings": 131072, "rope_parameters": LLAMA3}, 131072),
        ("phi3", {"max_position_embeddings": 131072, "rope_parameters": LONGROPE}, 131072),
        (
            "llama",
            {
                "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            },
            4096,
        ),
        (
            "llama",
            {
                "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
            },
            8192,
        ),
        ("gemma3_text", {"max_position_embeddings": 8192}, 8192),
        ("bloom", {}, 2048),
    ],
)
def test_the_models_own_limit(model_type: str, settings: dict[str, Any], want: int) -> None:
    assert max_model_len(AutoConfig.for_model(model_type, **settings), None) == want


def test_the_operators_limit() -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=4096)
    assert max_model_len(config, 512) == 512
    with pytest.raises(CannotStart, match=r"--max-model-len 4097: llama was made for 4096 tokens"):
        max_model_len(config, 4097)
    assert max_model_len(AutoConfig.for_model("bloom"), 100_000) == 100_000


def test_the_tokenizers_limit() -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=4096)
    assert max_model_len(config, None, tokenizer_limit=2048) == 2048
    assert max_model_len(config, None, tokenizer_limit=10**30) == 4096
    assert max_model_len(AutoConfig.for_model("bloom"), None, tokenizer_limit=10**30) == 2048
