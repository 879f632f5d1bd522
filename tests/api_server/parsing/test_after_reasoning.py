import json

import pytest
from msgspec.structs import replace

from api_server.parsing.after_reasoning import after_reasoning
from api_server.parsing.content import ContentReader
from api_server.parsing.forced import HEADER, tool_grammar
from api_server.parsing.hermes import HermesReader
from api_server.parsing.parameters import Function
from api_server.parsing.reasoning import ReasoningReader
from protocol.sampling import Grammar, GrammarKind
from tests.api_server.parsing.grammars import Vocabulary, vocabulary
from tests.api_server.parsing.reading import read

TAGS = [(), ("<think>", "</think>"), ("</think>",)]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["}", "<think"]}},
    "required": ["a"],
    "additionalProperties": False,
}
# Of each kind a grammar, a sentence of it, and what is none.
GRAMMARS = [
    (Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)), '{"a": "}"}', '{"b'),
    (Grammar(GrammarKind.JSON_SCHEMA, "true"), "[1]", "x"),
    (Grammar(GrammarKind.REGEX, r"a/b\/[/x]+"), "a/b//x", "a/c"),
    (Grammar(GrammarKind.REGEX, "a\nb|\\\\/"), "a\nb", "a b"),
    (Grammar(GrammarKind.REGEX, r"\d+"), "42", "\u0663"),
    (Grammar(GrammarKind.CHOICE, '["yes", "no", "\U0001f600\\n\\"/"]'), '\U0001f600\n"/', "maybe"),
    (Grammar(GrammarKind.LARK, 'start: "{" x "}" // }\nx: "x"+\nX: /}/'), "{xx}", "{}"),
    (Grammar(GrammarKind.LARK, 'root ::= "a" b\nb ::= [0-9]+'), "a12", "b"),
    (
        tool_grammar([Function("f")], "hermes", parallel=True),
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        "<tool_call>x",
    ),
]


def behind_thought(answer: Grammar, words: Vocabulary, *, opened: bool) -> Grammar:
    start, rule = after_reasoning("answer", opened=opened, special=words.added)
    return replace(answer, frame=f"{HEADER}\nstart: {start}\n{rule}")


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize(("grammar", "good", "bad"), GRAMMARS)
def test_the_answer_follows_the_thought(tags: tuple[str, ...], grammar: Grammar, good: str, bad: str) -> None:
    words = vocabulary(*tags)
    opened = behind_thought(grammar, words, opened=True)
    fresh = behind_thought(grammar, words, opened=False)
    for thought in ("", "\nI see: {\n\n", f"first {good} and <"):
        for gap in ("", "\n", "\n\n"):
            text = f"{thought}</think>{gap}"
            assert words.accepts(opened, text + good)
            assert not words.begins(opened, text + bad)
            assert words.accepts(fresh, f"<think>{text}{good}")
            assert not words.begins(fresh, f"<think>{text}{bad}")
        assert not words.accepts(opened, thought)
        assert not words.accepts(fresh, f"<think>{thought}")
    assert not words.begins(opened, "x</think>\n\n\n")
    assert words.accepts(fresh, good)
    assert not words.begins(fresh, bad)


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("opened", [True, False])
def test_what_is_thought_and_answered_can_be_read(tags: tuple[str, ...], opened: bool) -> None:
    words = vocabulary(*tags)
    grammar = behind_thought(GRAMMARS[0][0], words, opened=opened)
    thought = "" if opened else "<think>"
    text = f"{thought}one\n</think>\n" + '{"a": "<think"}'
    assert words.accepts(grammar, text)
    reading = read(ReasoningReader(ContentReader(), opened=opened), *text)
    assert (reading.reasoning, json.loads(reading.content)) == ("one", {"a": "<think"})
    calls = behind_thought(GRAMMARS[-1][0], words, opened=opened)
    text = f"{thought}one</think>" + GRAMMARS[-1][1]
    assert words.accepts(calls, text)
    assert read(ReasoningReader(HermesReader(), opened=opened), *text).calls == [("f", "{}")]


def test_a_thought_is_not_ended_by_the_tags_letters_where_the_tag_is_a_token() -> None:
    words = vocabulary("<think>", "</think>")
    grammar = behind_thought(GRAMMARS[0][0], words, opened=True)
    matcher = words.matcher(grammar)
    spelt = vocabulary().tokenizer.encode("</think>").ids
    assert matcher.try_consume_tokens(spelt) < len(spelt)
