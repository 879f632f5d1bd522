from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.render.parts import Closed, Grown, Opened, Parts
from api_server.text import Answer
from protocol.messages import Delta, FinishReason
from tests.api_server.render.answers import FULL, OTHER_CALL, THOUGHT, answer, encode, reader, work


def read(deltas: Sequence[Delta], parts: Parts) -> list[tuple[str, str, str, bool]]:
    """Kind, name, text and completeness of all parts. Their changes must tell the same, one open part at a time."""
    told = Answer(work("resp_1"))
    texts: dict[int, str] = {}
    opened: int | None = None
    for delta in deltas:
        piece = told.feed(0, delta)
        assert piece is not None
        for change in parts.feed(piece):
            match change:
                case Opened(part):
                    assert opened is None
                    assert part.index == len(texts)
                    opened = part.index
                    texts[opened] = ""
                case Grown(part, text):
                    assert opened == part.index
                    texts[part.index] += text
                case Closed(part):
                    assert opened == part.index
                    opened = None
    assert opened is None
    assert [part.text for part in parts.all] == list(texts.values())
    return [(part.kind, part.name, part.text, part.complete) for part in parts.all]


def test_all_kinds_in_the_order_of_the_text() -> None:
    parts = Parts(reader())
    assert read(answer(FULL), parts) == [
        ("reasoning", "", "Two and two.", True),
        ("text", "", "Let me see. 漢字 🎉\n", True),
        ("call", "add", '{"a": 1, "b": [2, 3]}', True),
        ("call", "stop", "{}", True),
        ("text", "", " Done.", True),
    ]
    assert parts.called
    assert 0 < parts.reasoning_tokens <= len(encode(THOUGHT))


def test_without_a_reader_everything_is_text() -> None:
    parts = Parts(None)
    assert read(answer(FULL), parts) == [("text", "", FULL, True)]
    assert not parts.called
    assert parts.reasoning_tokens == 0


@pytest.mark.parametrize("made", [None, reader])
def test_an_answer_that_says_nothing_is_an_empty_text(made: type | None) -> None:
    assert read(answer(""), Parts(made and made())) == [("text", "", "", True)]


def test_calls_alone_are_the_whole_answer() -> None:
    assert read(answer(f"\n{OTHER_CALL}\n"), Parts(reader())) == [("call", "stop", "{}", True)]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("<think>Two and", ["reasoning"]),
        (f"{THOUGHT}Let", ["reasoning", "text"]),
        (FULL[: FULL.index("[2")], ["reasoning", "text", "call"]),
    ],
)
def test_only_the_part_that_the_limit_cut_is_incomplete(text: str, kinds: list[str]) -> None:
    found = read(answer(text, finish=FinishReason.LENGTH), Parts(reader()))
    assert [kind for kind, *_ in found] == kinds
    assert [complete for *_, complete in found] == [True] * (len(kinds) - 1) + [False]


@given(st.lists(st.integers(0, 200)), st.sampled_from([FULL, FULL[:-30], THOUGHT, OTHER_CALL * 3, "plain <tool_call"]))
def test_the_parts_do_not_depend_on_how_tokens_are_grouped(cuts: list[int], text: str) -> None:
    one_by_one, grouped = Parts(reader()), Parts(reader())
    assert read(answer(text, cuts), grouped) == read(answer(text), one_by_one)
    assert grouped.reasoning_tokens == one_by_one.reasoning_tokens
