import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server.parsing.content import ContentReader
from api_server.parsing.hermes import HermesReader
from api_server.parsing.reasoning import ReasoningReader
from tests.api_server.parsing.reading import Reading, cut, held, places, read, read_both_ways, steps, texts

FRAGMENTS = ("<think>", "</think>", "\n", "\n\n", " ", "hm", "Answer", "<", "</thin", "<tool_call>")


def thoughts(*, opened: bool) -> ReasoningReader:
    return ReasoningReader(ContentReader(), opened=opened)


def reference(text: str, *, opened: bool) -> Reading:
    """The rules, on the whole text."""
    begun = text.lstrip("\n" if opened else " \t\r\n")
    if begun.startswith("<think>"):
        begun = begun.removeprefix("<think>")
    elif not opened:
        return Reading(text, "", [])
    thought, _, answer = begun.partition("</think>")
    return Reading(answer.lstrip("\n"), thought.strip("\n"), [])


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nI see.\n</think>\n\nYes.", "I see.", "Yes."),
        ("\n <think>one\n\ntwo</think> Yes.\n", "one\n\ntwo", " Yes.\n"),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),  # a model that was told not to think
        ("Yes.", "", "Yes."),
        ("  Yes, <think>no</think>", "", "  Yes, <think>no</think>"),
        ("Yes</think>No", "", "Yes</think>No"),
        ("<think>\nOn and on\n", "On and on", ""),
        ("<think>ends in </thi", "ends in </thi", ""),
        ("<think>a</think>b</think><think>c", "a", "b</think><think>c"),
        (" <thin", "", " <thin"),
        ("", "", ""),
    ],
)
def test_a_thought_begins_with_its_tag(text: str, reasoning: str, content: str) -> None:
    assert read_both_ways(lambda: thoughts(opened=False), text) == Reading(content, reasoning, [])


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("I see.\n</think>\n\nYes.", "I see.", "Yes."),
        ("\nI see.</think>Yes.", "I see.", "Yes."),
        ("<think>\nI see.\n</think>Yes.", "I see.", "Yes."),  # though the prompt had the tag
        ("I see <think> twice.</think>Yes.", "I see <think> twice.", "Yes."),
        ("On and on", "On and on", ""),
        ("</think>Yes.", "", "Yes."),
        ("<thin", "<thin", ""),
        ("", "", ""),
    ],
)
def test_or_was_begun_by_the_prompt(text: str, reasoning: str, content: str) -> None:
    assert read_both_ways(lambda: thoughts(opened=True), text) == Reading(content, reasoning, [])


def test_a_thought_is_told_as_it_comes() -> None:
    said = steps(thoughts(opened=False), ["<think>", "\n", "I s", "ee.", "\n", "\nSo", "</thi", "nk>\n", "\nYes"])
    assert [one.reasoning for one in said] == ["", "", "I s", "ee.", "", "\n\nSo", "", "", "", ""]
    assert [one.content for one in said] == [""] * 8 + ["Yes", ""]


def test_what_follows_the_thought_is_for_the_other_reader() -> None:
    calls = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text = f"<think>{calls}</think>\n{calls}"
    reading = read_both_ways(lambda: ReasoningReader(HermesReader(), opened=False), text)
    assert reading == Reading("", calls, [("f", "{}")])


@given(texts(*FRAGMENTS), st.booleans(), places)
def test_any_split_of_any_text_follows_the_rules(text: str, opened: bool, at: list[int]) -> None:
    assert read(thoughts(opened=opened), *cut(text, at)) == reference(text, opened=opened)


@given(texts(*FRAGMENTS), st.booleans())
def test_only_newlines_and_the_beginning_of_a_tag_are_held_back(text: str, opened: bool) -> None:
    reader = thoughts(opened=opened)
    for i in range(len(text)):
        reader.feed(text[i])
        *space, tag = held(reader._space), reader._held
        assert "<think>".startswith(tag) or "</think>".startswith(tag)
        assert not "".join(held(space)).strip()


def test_a_run_of_newlines_costs_no_memory() -> None:
    reader = thoughts(opened=True)
    reader.feed("x")
    for _ in range(1000):
        reader.feed("\n" * 100)
    assert sum(map(len, held(reader))) == 0
    assert reader.feed("y").reasoning == "\n" * 100_000 + "y"
