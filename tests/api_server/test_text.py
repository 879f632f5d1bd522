from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.text import Answer, Piece, join
from protocol.messages import Delta, FinishReason, FirstToken, TokenLogprobs
from tests.api_server.test_stop import reference
from tests.api_server.vocabularies import byte_level, deltas, job

TOKENIZER = byte_level()
END = TOKENIZER.token_to_id("<|end|>")


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


def pieces_of(parts: Sequence[Delta], **options: object) -> list[Piece]:
    answer = Answer(job(TOKENIZER, **options))
    found = [answer.feed(0, part) for part in parts]
    return [piece for piece in found if piece is not None]


def whole(
    tokens: Sequence[int],
    cuts: Sequence[int] = (),
    finish: FinishReason = FinishReason.LENGTH,
    **options: object,
) -> Piece:
    return join(pieces_of(deltas(tokens, cuts, finish), **options))


def test_text_tokens_and_position() -> None:
    tokens = encode("Hello world")
    piece = whole(tokens)
    assert (piece.text, piece.tokens, piece.pos) == ("Hello world", tokens, len(tokens))
    assert piece.finish is FinishReason.LENGTH
    assert piece.stop_reason is None


def test_the_end_of_sequence_is_a_token_without_text() -> None:
    tokens = [*encode("the end"), END]
    piece = whole(tokens, finish=FinishReason.STOP, skip_special_tokens=False)
    assert (piece.text, piece.pos, piece.finish) == ("the end", len(tokens), FinishReason.STOP)
    assert piece.tokens[-1] == END
    assert len(piece.texts) == len(tokens)


def test_the_end_of_sequence_is_text_if_stops_are_to_be_included() -> None:
    tokens = [*encode("the end"), END]
    shown = whole(tokens, finish=FinishReason.STOP, skip_special_tokens=False, include_stop=True)
    assert shown.text == "the end<|end|>"
    assert whole(tokens, finish=FinishReason.STOP, include_stop=True).text == "the end"


@pytest.mark.parametrize("cuts", [(), range(100)])
def test_an_output_that_is_complete_by_its_grammar_ends_with_text(cuts: Sequence[int]) -> None:
    parts = deltas(encode("the end"), list(cuts), finish=FinishReason.STOP)
    assert "".join(piece.text for piece in pieces_of(parts)) == "the end"
    late = [*deltas(encode("the end")), Delta(0, len(encode("the end")), [], FinishReason.STOP)]
    assert "".join(piece.text for piece in pieces_of(late)) == "the end"


def test_a_stop_token_is_the_reason() -> None:
    tokens = encode("the end")
    parts = deltas(tokens, finish=FinishReason.STOP)
    parts[-1].stop_token = tokens[-1]
    piece = pieces_of(parts)[-1]
    assert piece.stop_reason == tokens[-1]
    assert piece.text == TOKENIZER.decode(tokens[:-1])


def test_a_stop_string_cuts_text_tokens_and_position() -> None:
    tokens = encode("Hello world, how are you")
    through = next(i for i in range(len(tokens)) if "how" in TOKENIZER.decode(tokens[: i + 1])) + 1
    piece = whole(tokens, stop=("how",))
    assert (piece.text, piece.stop_reason) == ("Hello world, ", "how")
    assert (piece.tokens, piece.pos) == (tokens[:through], through)
    assert whole(tokens, stop=("how",), include_stop=True).text == "Hello world, how"


def test_a_stop_string_is_told_where_it_is_found_and_nothing_comes_after() -> None:
    answer = Answer(job(TOKENIZER, stop=("world",)))
    first, second, third = deltas(encode("Hello world, how are you today"), [3, 6])
    found = [answer.feed(0, part) for part in (first, second, third)]
    stopped = [piece for piece in found if piece is not None and piece.stopped]
    assert len(stopped) == 1
    assert answer.finished
    assert answer.usage.completion_tokens == stopped[0].pos
    assert answer.feed(0, third) is None


def test_a_stop_string_beats_the_length_it_came_with() -> None:
    piece = whole(encode("the end"), stop=("end",), finish=FinishReason.LENGTH)
    assert (piece.finish, piece.stop_reason, piece.text) == (FinishReason.STOP, "end", "the ")


def test_stop_strings_are_not_looked_for_within_min_tokens() -> None:
    tokens = encode("end the end")
    piece = whole(tokens, stop=("end",), min_tokens=len(encode("end")))
    assert piece.text == "end the "


@pytest.mark.parametrize("cuts", [(), range(100), [2], [3]])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_that_straddles_min_tokens_is_found(cuts: Sequence[int], include: bool) -> None:
    tokens = [TOKENIZER.token_to_id(character) for character in "xendxx"]
    for min_tokens, shown in ((0, "x"), (1, "x"), (2, "x"), (3, "x"), (4, "xendxx"), (5, "xendxx")):
        piece = whole(tokens, cuts, stop=("end",), min_tokens=min_tokens, include_stop=include)
        assert piece.text == (shown + "end" if include and shown == "x" else shown)


def test_nothing_that_was_shown_before_min_tokens_is_taken_back() -> None:
    tokens = [TOKENIZER.token_to_id(character) for character in "xendxx"]
    pieces = pieces_of(deltas(tokens, range(100)), stop=("end",), min_tokens=3)
    assert [piece.text for piece in pieces] == ["x", "", "", ""]
    assert pieces[-1].stopped


def test_what_is_held_back_comes_with_the_last_token() -> None:
    pieces = pieces_of(deltas(encode("the en"), range(10), FinishReason.LENGTH), stop=("end",))
    assert pieces[-1].finish is FinishReason.LENGTH
    assert "".join(piece.text for piece in pieces) == "the en"


def test_an_unfinished_character_comes_with_the_last_token() -> None:
    tokens = encode("a𝄞")[:-1]
    pieces = pieces_of(deltas(tokens, range(10), FinishReason.LENGTH))
    assert [piece.text for piece in pieces][-1] == "\ufffd"


def alone(tokens: Sequence[int]) -> list[Delta]:
    """The tokens one by one, and the finish after the last."""
    return [*deltas(tokens, range(len(tokens))), Delta(0, len(tokens), [], FinishReason.LENGTH)]


def test_a_finish_that_comes_alone_frees_what_was_held_back() -> None:
    tokens = encode("the en")
    pieces = pieces_of(alone(tokens), stop=("end",))
    assert pieces[-1].rest == "en"
    assert (join(pieces).text, join(pieces).tokens, join(pieces).pos) == ("the en", tokens, len(tokens))
    assert pieces_of(alone(encode("a𝄞")[:-1]))[-1].text == "\ufffd"


def test_what_a_finish_frees_may_be_a_stop_string() -> None:
    tokens = encode("a𝄞")[:-1]
    piece = join(pieces_of(alone(tokens), stop=("\ufffd",)))
    assert (piece.text, piece.finish, piece.stop_reason) == ("a", FinishReason.STOP, "\ufffd")
    assert piece.tokens == tokens


def test_offsets_are_where_tokens_begin() -> None:
    tokens = encode("Hello 𝄞 world")
    entries = [TokenLogprobs(-0.5, [token], [-0.5]) for token in tokens]
    piece = join(pieces_of(deltas(tokens, [2, 5], FinishReason.LENGTH, entries)))
    assert piece.logprobs == entries
    assert piece.offsets is not None
    for offset, token in zip(piece.offsets, tokens, strict=True):
        own = TOKENIZER.decode([token])
        assert "\ufffd" in own or piece.text[offset:].startswith(own)


def test_logprobs_end_with_the_tokens() -> None:
    tokens = encode("Hello world, how are you")
    entries = [TokenLogprobs(-1.0, [token], [-1.0]) for token in tokens]
    piece = join(pieces_of(deltas(tokens, (), None, entries), stop=("how",)))
    assert piece.logprobs == entries[: piece.pos]
    assert piece.offsets is not None
    assert len(piece.offsets) == piece.pos


def test_usage_counts_prompts_once_and_cached_tokens_of_first_choices() -> None:
    answer = Answer(job(TOKENIZER, prompts=[[1, 2, 3], [4]], n=2))
    for index, cached in enumerate([2, 99, 0, 99]):
        answer.feed(index, Delta(index, 0, [7, 8], FinishReason.LENGTH, first=FirstToken(0.0, 0.0, cached)))
    usage = answer.usage
    assert answer.finished
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 8, 12)
    assert usage.prompt_tokens_details.cached_tokens == 2


vocabulary = st.integers(0, TOKENIZER.get_vocab_size() - 1)
words = st.sampled_from(["Hello", " world", "en", "end", "d", "aab", "a", "𝄞", "👩‍👩‍👧", "é", "\n", "�"]).map(encode)
outputs = st.lists(words | st.lists(vocabulary, max_size=3), max_size=12).map(
    lambda parts: [t for p in parts for t in p]
)
stops = st.lists(st.sampled_from(["end", "d\n", "aab", "👩‍👩", "\ufffd", " world", "é"]), max_size=4, unique=True).map(
    tuple
)


@given(
    outputs.filter(bool),
    st.lists(st.integers(0, 40), max_size=20),
    stops,
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from(list(FinishReason)),
)
def test_any_split_gives_the_same_text_and_the_same_cut(
    tokens: list[int], cuts: list[int], stop: tuple[str, ...], include: bool, min_tokens: int, finish: FinishReason
) -> None:
    options: dict[str, object] = {"stop": stop, "include_stop": include, "min_tokens": min_tokens}
    at_once = whole(tokens, (), finish, **options)
    split = whole(tokens, cuts, finish, **options)
    one_by_one = whole(tokens, range(len(tokens)), finish, **options)
    for other in (split, one_by_one):
        assert (other.text, other.texts, other.tokens) == (at_once.text, at_once.texts, at_once.tokens)
        assert (other.pos, other.finish, other.stop_reason) == (at_once.pos, at_once.finish, at_once.stop_reason)
    if finish is FinishReason.LENGTH:
        told_later = join(pieces_of(alone(tokens), **options))
        assert (told_later.text, told_later.tokens) == (at_once.text, at_once.tokens)
        assert (told_later.finish, told_later.stop_reason) == (at_once.finish, at_once.stop_reason)


def plane(number: int) -> st.SearchStrategy[str]:
    """Its characters but U+FFFD, which a part of a character looks like."""
    first = number << 16
    return st.characters(
        min_codepoint=first, max_codepoint=first + 0xFFFF, exclude_categories=["Cs"], exclude_characters="\ufffd"
    )


characters = st.integers(0, 16).flatmap(plane) | st.sampled_from("ab ")


@given(st.data(), st.text(characters, min_size=1, max_size=20), st.booleans())
def test_a_text_of_any_planes_is_cut_where_a_stop_string_is_first_complete(
    data: st.DataObject, text: str, include: bool
) -> None:
    places = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 4))
    stop = tuple(text[at : at + size] for at, size in data.draw(st.lists(places, max_size=4)))
    tokens = encode(text)
    cuts = data.draw(st.lists(st.integers(1, len(tokens)), max_size=8) | st.just(range(len(tokens))))
    piece = whole(tokens, cuts, stop=stop, include_stop=include, skip_special_tokens=False)
    assert (piece.text, piece.stop_reason) == reference(text, stop, include=include)
    if stop:
        end = piece.text if include else piece.text + str(piece.stop_reason)
        assert TOKENIZER.decode(piece.tokens, skip_special_tokens=False).startswith(end)
        assert not TOKENIZER.decode(piece.tokens[:-1], skip_special_tokens=False).startswith(end)


@given(outputs.filter(bool), stops.filter(bool))
def test_a_stop_string_never_shows(tokens: list[int], stop: tuple[str, ...]) -> None:
    text = whole(tokens, range(len(tokens)), stop=stop).text
    assert not any(one in text for one in stop)


@pytest.mark.parametrize("end", range(1, 6))
def test_what_is_visible_is_a_prefix_of_what_will_be(end: int) -> None:
    tokens = encode("a𝄞 the end")
    early = join(pieces_of(deltas(tokens[:end]), stop=("end",))).text
    assert whole(tokens, stop=("end",)).text.startswith(early)
