"""Rotary embeddings that follow the longest position of the batch are frozen at load."""

from typing import Any

import pytest

from engine_core.model.quirks import freeze_rope
from tests.engine_core.architectures import build, config_of
from tests.engine_core.driver import Engine, make_request, reference

ORIGINAL = 16
SHORT = tuple(range(5, 13))
LONG = tuple((i * 29 + 3) % 120 + 2 for i in range(30))
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 6.0, 9.0],
}
MSCALES = {"short_mscale": 1.0, "long_mscale": 1.4}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def scaled(name: str, rope: dict[str, Any], **changes: Any) -> Any:
    config = config_of(name)
    config.rope_parameters = dict(rope)
    for key, value in changes.items():
        setattr(config, key, value)
    return config


CONFIGS = {
    "phi3 longrope": lambda: scaled("phi3", LONGROPE, original_max_position_embeddings=ORIGINAL, sliding_window=None),
    "phimoe longrope": lambda: scaled("phimoe", LONGROPE | MSCALES),
    "llama dynamic": lambda: scaled("llama", DYNAMIC, max_position_embeddings=ORIGINAL),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_long_neighbour_changes_nothing(name: str) -> None:
    engine = Engine(build(CONFIGS[name]()), max_model_len=48)
    (alone,) = engine.generate([SHORT], 6)
    first, second = (engine.admit(make_request(prompt)) for prompt in (SHORT, LONG))
    engine.step([engine.row(second, len(LONG))], [second])
    engine.step([engine.row(first, len(SHORT)), engine.row(second, 1)], [first])
    for _ in range(5):
        engine.step([engine.row(first, 1), engine.row(second, 1)])
    assert first.out == alone


@pytest.mark.parametrize("name", CONFIGS)
def test_a_context_within_the_original_one_is_unscaled(name: str) -> None:
    engine = Engine(build(CONFIGS[name]()), max_model_len=ORIGINAL)
    assert engine.generate([SHORT], 6) == [reference(build(CONFIGS[name]()), SHORT, 6)]


def test_beyond_it_the_long_factors_hold_from_the_first_token() -> None:
    """As in transformers once the prompt itself is that long."""
    engine = Engine(build(CONFIGS["phi3 longrope"]()), max_model_len=48)
    want = reference(build(CONFIGS["phi3 longrope"]()), LONG, 6)
    assert engine.generate([LONG], 6, chunk=7) == [want]
    short = Engine(build(CONFIGS["phi3 longrope"]()), max_model_len=ORIGINAL)
    assert engine.generate([SHORT], 6) != short.generate([SHORT], 6)


def test_other_kinds_of_scaling_are_left_alone() -> None:
    model = build(config_of("llama-yarn"))
    before = model.model.rotary_emb.inv_freq.clone()
    freeze_rope(model, 48)
    assert model.model.rotary_emb.inv_freq.equal(before)
    assert model.model.rotary_emb.rope_type == "yarn"
