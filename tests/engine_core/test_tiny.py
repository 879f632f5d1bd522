"""The built-in model: complete and small, its tokenizer exact, its questions split cleanly, its answers right and
ended by EOS.
"""

import itertools
import random
import sys
from collections.abc import Iterator
from subprocess import run
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from engine_core.tiny import MODEL_PATH
from engine_core.tiny.conversations import Conversations, Mix
from engine_core.tiny.corpus import Corpus, load_corpus, normalise
from engine_core.tiny.evaluate import Oracle, follow_up_cases, question_cases, user
from engine_core.tiny.stories import make_story
from engine_core.tiny.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, MAX_POSITIONS
from engine_core.tiny.variation import Variation

SAMPLE = 24
UNICODE = [
    "plain text",
    "  spaces,\ttabs\n\nand newlines  \n",
    "ä ö ü ß é ñ 中文 हिन्दी العربية",
    "🙂 👩‍👩‍👧 🇩🇪 🚀",
    "\x00\x7f\u200b\ufeff\U0010ffff",
    "e\u0301 is not é",
]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_PATH)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    yield Oracle(MODEL_PATH, torch.float32)
    torch.set_num_threads(threads)


def test_model_folder_is_complete_and_small() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_PATH.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(files)
    assert sum(files.values()) < 10_000_000


def test_path_is_known_without_torch() -> None:
    code = "import sys, engine_core.tiny as tiny; assert tiny.MODEL_PATH.is_dir(); assert 'torch' not in sys.modules"
    assert run([sys.executable, "-c", code], check=False).returncode == 0


def test_model_is_a_llama_in_bf16_that_ends_turns_and_texts() -> None:
    model = Oracle(MODEL_PATH, "auto").model
    ends = {model.config.eos_token_id, *model.generation_config.eos_token_id}
    assert (model.config.model_type, model.dtype) == ("llama", torch.bfloat16)
    assert model.config.max_position_embeddings == MAX_POSITIONS
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(ends) == 2


@pytest.mark.parametrize("text", UNICODE)
def test_tokenizer_round_trips_any_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_tokenizer_round_trips_random_code_points(tokenizer: Any) -> None:
    rng = random.Random(3)
    for _ in range(50):
        text = "".join(chr(rng.choice([*range(1, 0xD800), *range(0xE000, 0x20000)])) for _ in range(20))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_and_none_is_added(tokenizer: Any) -> None:
    assert [len(tokenizer.encode(token)) for token in (END_OF_TEXT, IM_START, IM_END)] == [1, 1, 1]
    assert tokenizer.encode("") == []
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (END_OF_TEXT, IM_END, END_OF_TEXT)


def test_chat_template_renders_what_was_trained(tokenizer: Any, corpus: Corpus) -> None:
    documents = Conversations(corpus, 5, Mix(brief=0.0)).documents()
    chats = [document for document in itertools.islice(documents, 60) if document[0].text.startswith(IM_START)]
    assert chats
    for document in chats:
        text = "".join(part for part, *_ in document)
        turns = [turn.split("\n", 1) for turn in text.split(IM_START)[1:]]
        messages = [{"role": role, "content": content.removesuffix(IM_END + "\n")} for role, content in turns]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == text
        ids = [token for part, *_ in document for token in tokenizer.encode(part)]
        assert tokenizer.apply_chat_template(messages, return_dict=False) == ids


def test_chat_template_takes_text_parts_and_empty_content(tokenizer: Any) -> None:
    assert tokenizer.chat_template == CHAT_TEMPLATE
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"{IM_START}user\nab{IM_END}\n{IM_START}assistant\n{IM_END}\n{IM_START}assistant\n"


def test_split_is_disjoint_and_every_topic_has_both_sides(corpus: Corpus) -> None:
    trained = {normalise(line.text) for topic in corpus.topics for line in topic.train}
    held_out = {normalise(line.text) for topic in corpus.topics for line in topic.held_out}
    assert not trained & held_out
    assert len(corpus.topics) >= 200
    assert min(len(topic.held_out) for topic in corpus.topics) >= 2
    assert min(len(topic.train) + len(topic.held_out) for topic in corpus.topics) >= 8
    assert 0.15 < len(held_out) / (len(held_out) + len(trained)) < 0.25


def test_variation_never_gives_a_held_out_question(corpus: Corpus) -> None:
    variation = Variation(corpus, random.Random(1))
    held_out = {normalise(line.text) for topic in corpus.topics for line in topic.held_out}
    for topic in corpus.topics:
        for line in topic.train[:20]:
            assert normalise(variation.vary(line.text)) not in held_out


def test_answers_are_unique(corpus: Corpus) -> None:
    answers = [text for topic in corpus.topics for text in (topic.answer, topic.more, topic.why) if text]
    assert len(answers) == len(set(answers))


def test_documents_depend_on_the_seed_alone(corpus: Corpus) -> None:
    first, second, other = (list(itertools.islice(Conversations(corpus, seed).documents(), 40)) for seed in (1, 1, 2))
    assert first == second != other


def test_stories_leave_no_gap(corpus: Corpus) -> None:
    rng = random.Random(0)
    for _ in range(200):
        story = make_story(rng)
        assert "{" not in story.question + story.text
        assert story.text.endswith((".", "!", '"'))


def test_held_out_questions_are_answered_and_end(oracle: Oracle, corpus: Corpus) -> None:
    cases = question_cases(corpus)
    sample = cases[:: len(cases) // SAMPLE][:SAMPLE]
    replies = oracle.answer([case.messages for case in sample])
    assert all(reply.ended for reply in replies)
    right = sum(reply.text == case.answer for case, reply in zip(sample, replies, strict=True))
    assert right >= 0.85 * SAMPLE  # `python -m engine_core.tiny.evaluate` asks all of them


def test_follow_ups_depend_on_the_topic(oracle: Oracle, corpus: Corpus) -> None:
    cases = follow_up_cases(corpus)[::5]
    replies = oracle.answer([case.messages for case in cases])
    assert sum(reply.text == case.answer for case, reply in zip(cases, replies, strict=True)) >= 0.75 * len(cases)


def test_stories_come_on_request_and_end(oracle: Oracle) -> None:
    told = oracle.answer([[user("Tell me a story about a fox.")]])[0]
    continued = oracle.complete(["Once upon a time"])[0]
    assert told.ended
    assert continued.ended
    assert " fox" in told.text
    assert len(continued.text.split()) > 40
