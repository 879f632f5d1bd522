import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.stop import Hit, StopMatcher


def run(
    pieces: list[str], stops: tuple[str, ...], *, include: bool = False, unarmed: int = 0
) -> tuple[str, str | None]:
    """All that is shown, and the stop string that ended it. The first `unarmed` pieces may not end it."""
    matcher = StopMatcher(stops, include=include)
    shown = ""
    for i, piece in enumerate(pieces):
        found = matcher.feed(piece, armed=i >= unarmed)
        if isinstance(found, Hit):
            return shown + found.text, found.stop
        shown += found
    return shown + matcher.flush(), None


def reference(text: str, stops: tuple[str, ...], *, include: bool = False, unarmed: int = 0) -> tuple[str, str | None]:
    """Character by character: the first end of any stop string behind `unarmed` characters, of several the longest."""
    for end in range(unarmed + 1, len(text) + 1):
        ending = [stop for stop in stops if text.endswith(stop, 0, end)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def test_text_without_a_stop_string_is_shown_at_once() -> None:
    matcher = StopMatcher(("###",), include=False)
    assert matcher.feed("all of it") == "all of it"


def test_what_could_become_a_stop_string_is_held_back_and_no_more() -> None:
    matcher = StopMatcher(("\n\nUser:", "##"), include=False)
    assert matcher.feed("one\n") == "one"
    assert matcher.feed("two") == "\ntwo"
    assert matcher.feed("\n\nUse") == ""
    assert matcher.feed("d #") == "\n\nUsed "
    assert matcher.feed("#") == Hit("", "##")


def test_a_stop_string_over_three_pieces() -> None:
    assert run(["the e", "n", "d is near"], ("end",)) == ("the ", "end")
    assert run(["the e", "n", "d is near"], ("end",), include=True) == ("the end", "end")


def test_the_end_of_the_text_frees_what_was_held_back() -> None:
    assert run(["almost ST", "O"], ("STOP",)) == ("almost STO", None)


def test_the_one_that_is_complete_first_wins() -> None:
    assert run(["abcd"], ("abcd", "bc")) == ("a", "bc")
    assert run(["ab", "cd"], ("abcd", "bc")) == ("a", "bc")


def test_of_two_that_end_together_the_longer_wins() -> None:
    assert run(["xabc"], ("bc", "abc")) == ("x", "abc")


def test_a_stop_string_that_repeats_itself() -> None:
    assert run(["aa", "ab", "aab"], ("aab",)) == ("a", "aab")


def test_a_stop_string_that_only_begins_unarmed_counts_and_was_never_shown() -> None:
    assert run(["the e", "n", "d is"], ("end",), unarmed=2) == ("the ", "end")
    assert run(["the end", " is the end"], ("end",), unarmed=1) == ("the end is the ", "end")
    assert run(["cab", "x"], ("ab", "cabd"), unarmed=1) == ("cabx", None)
    assert run(["cab", "d"], ("ab", "cabd"), unarmed=1) == ("", "cabd")


@pytest.mark.parametrize("include", [False, True])
def test_beyond_the_basic_plane(include: bool) -> None:
    assert run(["say 👩‍", "👩‍👧", "!"], ("👩‍👩‍👧",), include=include) == reference(
        "say 👩‍👩‍👧!", ("👩‍👩‍👧",), include=include
    )


letters = st.text(alphabet="aab𝄞\n", max_size=6)


@given(
    st.lists(letters, max_size=8),
    st.lists(letters.filter(bool), min_size=1, max_size=4).map(tuple),
    st.booleans(),
    st.integers(0, 8),
)
def test_any_split_gives_what_the_whole_text_gives(
    pieces: list[str], stops: tuple[str, ...], include: bool, unarmed: int
) -> None:
    expected = reference("".join(pieces), stops, include=include, unarmed=sum(map(len, pieces[:unarmed])))
    assert run(pieces, stops, include=include, unarmed=unarmed) == expected


@given(st.lists(letters, max_size=8), st.lists(letters.filter(bool), min_size=1, max_size=4).map(tuple))
def test_only_a_possible_beginning_is_held_back(pieces: list[str], stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops, include=False)
    fed = shown = ""
    for piece in pieces:
        fed += piece
        found = matcher.feed(piece)
        if isinstance(found, Hit):
            return
        shown += found
        held = fed[len(shown) :]
        assert fed == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)
