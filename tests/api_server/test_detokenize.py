from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from api_server.detokenize import WINDOW, Vocabulary, WindowDetokenizer
from api_server.spelling import spelling_of
from tests.api_server.vocabularies import byte_level, sentencepiece

BYTE_LEVEL = byte_level()
LLAMA = sentencepiece()
GEMMA = sentencepiece(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))
EXACT = {
    "byte-level": BYTE_LEVEL,
    "metaspace always": sentencepiece(decoders.Metaspace()),
    "metaspace never": sentencepiece(decoders.Metaspace(prepend_scheme="never")),
}
VOCABULARIES = {name: Vocabulary(tokenizer) for name, tokenizer in EXACT.items()}
texts = st.text(max_size=40)


def ids(tokenizer: Tokenizer, max_size: int = 24) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=max_size)


def detokenize(vocabulary: Vocabulary, tokens: Sequence[int], prompt: Sequence[int] = (), *, skip: bool = True) -> str:
    detokenizer = vocabulary.detokenizer(prompt, skip_special=skip)
    return "".join(map(detokenizer.step, tokens)) + detokenizer.flush()


@pytest.mark.parametrize("name", sorted(EXACT))
@given(data=st.data(), skip=st.booleans())
def test_equal_to_a_full_decode_for_any_tokens(name: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = EXACT[name]
    tokens = data.draw(ids(tokenizer))
    assert detokenize(VOCABULARIES[name], tokens, skip=skip) == tokenizer.decode(tokens, skip_special_tokens=skip)


def utf8(tokenizer: Tokenizer, tokens: list[int], *, skip: bool, strip: bool) -> str:
    """What sentencepiece's tokens say as bytes, each invalid sequence replaced once."""
    data = b""
    for token in tokens:
        name = tokenizer.id_to_token(token)
        if skip and name in ("<unk>", "<s>", "</s>"):
            continue
        is_byte = len(name) == 6 and name.startswith("<0x")
        data += bytes([int(name[3:5], 16)]) if is_byte else name.replace("▁", " ").encode()
    return data.removeprefix(b" ").decode(errors="replace") if strip else data.decode(errors="replace")


@pytest.mark.parametrize(("tokenizer", "strip"), [(LLAMA, True), (GEMMA, False)], ids=["llama", "gemma"])
@given(data=st.data(), skip=st.booleans())
def test_byte_fallback_is_utf8_and_where_valid_a_full_decode(
    tokenizer: Tokenizer, strip: bool, data: st.DataObject, skip: bool
) -> None:
    tokens = data.draw(ids(tokenizer))
    text = detokenize(Vocabulary(tokenizer), tokens, skip=skip)
    assert text == utf8(tokenizer, tokens, skip=skip, strip=strip)
    full = tokenizer.decode(tokens, skip_special_tokens=skip)
    if "\ufffd" not in full:
        assert text == full


@given(texts)
def test_text_comes_back_from_a_byte_level_tokenizer(text: str) -> None:
    tokens = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    assert detokenize(VOCABULARIES["byte-level"], tokens, skip=False) == text


@given(st.text(alphabet="hello é漢👩‍🎉", max_size=20))
def test_text_comes_back_from_byte_fallback(text: str) -> None:
    tokens = LLAMA.encode(text.replace(" ", "▁"), add_special_tokens=False).ids
    assert detokenize(Vocabulary(LLAMA), tokens, prompt=[1, 262]) == text


@given(st.data())
def test_what_is_shown_depends_on_the_tokens_before_it_alone(data: st.DataObject) -> None:
    tokens = data.draw(ids(BYTE_LEVEL))
    vocabulary = VOCABULARIES["byte-level"]
    long = vocabulary.detokenizer((), skip_special=True)
    shown = [long.step(token) for token in tokens]
    for end in range(len(tokens)):
        short = vocabulary.detokenizer((), skip_special=True)
        assert [short.step(token) for token in tokens[:end]] == shown[:end]


def test_an_emoji_is_shown_when_its_last_byte_is_there() -> None:
    tokenizer = sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]))
    tokens = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🎉".encode()]
    detokenizer = Vocabulary(tokenizer).detokenizer((), skip_special=True)
    assert [detokenizer.step(token) for token in tokens] == ["", "", "", "🎉"]
    assert detokenizer.flush() == ""


def test_an_unfinished_character_becomes_one_replacement_at_the_end() -> None:
    tokens = BYTE_LEVEL.encode("𝄞", add_special_tokens=False).ids[:-1]
    detokenizer = VOCABULARIES["byte-level"].detokenizer((), skip_special=True)
    assert "".join(map(detokenizer.step, tokens)) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_endless_invalid_bytes_are_shown_as_they_come() -> None:
    continuation = LLAMA.token_to_id("<0x80>")
    detokenizer = Vocabulary(LLAMA).detokenizer([260], skip_special=True)
    assert [detokenizer.step(continuation) for _ in range(1000)] == ["\ufffd"] * 1000


def test_output_continues_its_prompt_and_keeps_its_space() -> None:
    hello = LLAMA.token_to_id("▁hello")
    vocabulary = Vocabulary(LLAMA)
    assert detokenize(vocabulary, [hello, hello], prompt=[1, hello]) == " hello hello"
    assert detokenize(vocabulary, [hello, hello], prompt=[1]) == "hello hello"  # the prompt shows nothing
    assert detokenize(vocabulary, [1, hello, hello], prompt=[]) == "hello hello"


def test_special_tokens_are_hidden_only_if_asked() -> None:
    end = BYTE_LEVEL.token_to_id("<|end|>")
    word = BYTE_LEVEL.encode("the", add_special_tokens=False).ids
    assert detokenize(VOCABULARIES["byte-level"], [*word, end, *word]) == "thethe"
    assert detokenize(VOCABULARIES["byte-level"], [*word, end, *word], skip=False) == "the<|end|>the"


def test_ids_beyond_the_tokenizer_say_nothing() -> None:
    assert detokenize(VOCABULARIES["byte-level"], [50_000]) == ""


def test_without_a_tokenizer_there_is_no_text() -> None:
    assert detokenize(Vocabulary(None), [1, 2, 3]) == ""
    assert Vocabulary(None).spell(1) == b""


@pytest.fixture(scope="module")
def word_pieces() -> Tokenizer:
    words = ["[UNK]", "[SEP]", "play", "##ing", "chess", "un", "##it"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


def test_other_decoders_are_asked_about_a_window(word_pieces: Tokenizer) -> None:
    assert spelling_of(word_pieces) is None
    tokens = [2, 3, 4, 1, 5, 6] * 10
    text = detokenize(Vocabulary(word_pieces), tokens)
    assert text == word_pieces.decode(tokens, skip_special_tokens=True)


def test_a_window_continues_its_prompt(word_pieces: Tokenizer) -> None:
    assert detokenize(Vocabulary(word_pieces), [3, 4], prompt=[4, 2]) == "ing chess"


def test_a_window_holds_an_unfinished_character_back_but_not_for_ever() -> None:
    tokenizer = byte_level()
    lead = tokenizer.token_to_id("ð")  # 0xF0, the first of four bytes
    detokenizer = WindowDetokenizer(tokenizer, frozenset(), [])
    shown = [detokenizer.step(lead) for _ in range(WINDOW)]
    assert shown[: WINDOW - 1] == [""] * (WINDOW - 1)
    assert set(shown[-1]) == {"\ufffd"}


def test_a_window_shows_whole_characters() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("é🎉漢 done", add_special_tokens=False).ids
    detokenizer = WindowDetokenizer(tokenizer, frozenset(), [])
    shown = [detokenizer.step(token) for token in tokens]
    assert "".join(shown) + detokenizer.flush() == "é🎉漢 done"
    assert not any("\ufffd" in text for text in shown)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]),  # strips every token
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    ],
)
def test_decoders_that_spell_no_fixed_bytes(decoder: object) -> None:
    assert spelling_of(sentencepiece(decoder)) is None
