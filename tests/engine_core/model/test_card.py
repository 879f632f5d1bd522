import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine_core.errors import CannotStart
from engine_core.model.card import build_card, load_tokenizer
from engine_core.model.loader import load_config
from engine_core.model.source import resolve
from protocol.messages import ModelCard, SamplingDefaults
from tests.engine_core.architectures import config_of

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<|im_end|>", "hello", "world")
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration with a tokenizer, without weights or generation_config.json."""
    config_of("llama").save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.enable_truncation(5)
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE, **named).save_pretrained(tmp_path)
    return tmp_path


def card_of(folder: Path, *, optional: bool = False, chat_template: str | None = None) -> ModelCard:
    source = resolve(str(folder))
    return build_card(
        source,
        load_config(source),
        load_tokenizer(source, optional=optional),
        name="small",
        created=1_700_000_000,
        vocab_size=128,
        max_model_len=64,
        chat_template=chat_template,
    )


def write_generation_config(folder: Path, **settings: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


def test_a_frontend_needs_nothing_else(folder: Path) -> None:
    card = card_of(folder)
    assert (card.name, card.created, card.vocab_size, card.max_model_len) == ("small", 1_700_000_000, 128, 64)
    assert card.chat_template == TEMPLATE
    assert card.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    tokenizer = Tokenizer.from_str(card.tokenizer.decode())
    assert tokenizer.encode("hello world world").ids == [5, 6, 6]
    assert len(tokenizer.encode("hello " * 9).ids) == 9, "a truncating tokenizer would drop what users say"
    assert len(card.tokenizer_digest) == 16
    assert card.tokenizer_digest == card_of(folder).tokenizer_digest


def test_another_chat_template(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages }}", encoding="utf-8")
    assert card_of(folder, chat_template=str(other)).chat_template == "{{ messages }}"
    with pytest.raises(CannotStart, match=r"--chat-template /nowhere\.jinja"):
        card_of(folder, chat_template="/nowhere.jinja")


def test_end_of_sequence_ids(folder: Path) -> None:
    assert card_of(folder).eos_token_ids == [2, 4]  # the configuration's and the tokenizer's
    write_generation_config(folder, eos_token_id=3)
    assert card_of(folder).eos_token_ids == [3, 4]
    write_generation_config(folder, eos_token_id=[6, 3, 999_999])
    assert card_of(folder).eos_token_ids == [3, 4, 6]


def test_sampling_defaults(folder: Path) -> None:
    assert card_of(folder).defaults == SamplingDefaults()
    write_generation_config(folder, temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.05)
    assert card_of(folder).defaults == SamplingDefaults(0.6, 0.95, 20, 0.1, 1.05)
    write_generation_config(folder, do_sample=True, temperature=None, top_k=-1, top_p=0.0)
    assert card_of(folder).defaults == SamplingDefaults()
    write_generation_config(folder, do_sample=False, temperature=0.6)
    assert card_of(folder).defaults == SamplingDefaults()


def test_a_broken_generation_config_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(CannotStart, match=r"generation_config\.json: can't be read"):
        card_of(folder)


def test_a_model_without_tokenizer_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    with pytest.raises(CannotStart, match=f"{tmp_path}: the tokenizer can't be loaded"):
        card_of(tmp_path)
    card = card_of(tmp_path, optional=True)
    assert (card.tokenizer, card.chat_template, card.special_tokens) == (b"", None, {})
    assert card.eos_token_ids == [2]
