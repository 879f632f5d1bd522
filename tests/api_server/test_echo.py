import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

from api_server.detokenize import Vocabulary
from api_server.echo import echo_of_ids, echo_of_texts
from tests.api_server.vocabularies import byte_level, sentencepiece

TOKENIZER = byte_level()
SPECIALS = ["<|bos|>", "<|end|>", "<|user|>"]


def measured(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Token ids and where they begin."""
    echo = asyncio.run(echo_of_texts(tokenizer, [text], measured=True))
    assert echo.texts == (text,)
    assert echo.offsets is not None
    return tokenizer.encode(text).ids, list(echo.offsets[0])


def check(tokenizer: Tokenizer, text: str, ids: list[int], offsets: list[int], *, first_is_special: bool) -> None:
    """Each token that is whole text stands where it is said to begin."""
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets)
    vocabulary = Vocabulary(tokenizer)
    for token, offset in list(zip(ids, offsets, strict=True))[first_is_special:]:
        piece = vocabulary.piece(token)
        if isinstance(piece, str):
            assert text.startswith(piece, offset)
        else:
            assert piece in text[offset:].encode()


@given(
    st.lists(st.sampled_from(["Hello", " world", "  ", "é", "漢字", "🎉", "\n", "foo bar", "<|user|>"])).map("".join)
)
def test_a_text_is_repeated_as_it_came_with_its_tokens_places(text: str) -> None:
    ids, offsets = measured(TOKENIZER, text)
    assert offsets[0] == 0, "the special token in front takes no place"
    check(TOKENIZER, text, ids, offsets, first_is_special=True)


def test_a_tokenizer_that_counts_spaces_to_no_token() -> None:
    trimming = byte_level()
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    assert trimming.encode("Hello world").offsets == [(0, 5), (6, 11)]
    assert measured(trimming, "Hello world")[1] == [0, 5]


def test_a_special_token_behind_the_text() -> None:
    closing = byte_level()
    closing.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=[("<|bos|>", 0), ("<|end|>", 1)]
    )
    assert measured(closing, "Hello world")[1] == [0, 0, 5, 11]


def test_a_tokenizer_that_puts_a_space_in_front() -> None:
    tokenizer = sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    text = "hello hello"
    ids, offsets = measured(tokenizer, text)
    assert len(ids) == len(offsets)
    assert offsets[0] == 0
    assert text[offsets[len(ids) // 2] :] == " hello"


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), min_size=1, max_size=20))
def test_token_ids_are_spelt_out_with_their_places(ids: list[int]) -> None:
    echo = asyncio.run(echo_of_ids(Vocabulary(TOKENIZER), [ids, ids[::-1]], measured=True))
    assert echo.offsets is not None
    for prompt, text, offsets in zip((ids, ids[::-1]), echo.texts, echo.offsets, strict=True):
        assert text == b"".join(Vocabulary(TOKENIZER).spell(token) for token in prompt).decode(errors="replace")
        assert len(offsets) == len(prompt)
        assert offsets == sorted(offsets)
        assert offsets[0] == 0


@pytest.mark.parametrize("name", SPECIALS)
def test_special_tokens_among_ids_are_text(name: str) -> None:
    ids = [TOKENIZER.token_to_id(name), *TOKENIZER.encode("Hello", add_special_tokens=False).ids]
    echo = asyncio.run(echo_of_ids(Vocabulary(TOKENIZER), [ids], measured=True))
    assert echo == ((f"{name}Hello",), ([0, len(name)],))


def test_nothing_is_measured_that_nobody_asked_for() -> None:
    assert asyncio.run(echo_of_texts(TOKENIZER, ["Hello"], measured=False)) == (("Hello",), None)
    assert asyncio.run(echo_of_texts(None, ["Hello"], measured=True)) == (("Hello",), None)
    assert asyncio.run(echo_of_ids(Vocabulary(TOKENIZER), [[5]], measured=False)).offsets is None
