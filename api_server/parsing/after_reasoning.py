"""A grammar that holds only from the end of the thought on: what a reasoning model thinks is free, its answer is not.

Knows the four languages of grammars and how a thought is written.
"""

import json
import re
from typing import Final

from api_server.parsing.forced import HEADER, literal, tag
from api_server.parsing.reasoning import CLOSE, OPEN
from protocol.sampling import Grammar, GrammarKind

_SLASH_OR_LINE: Final = re.compile(r"\\.|/|\n|\r", re.DOTALL)
_IN_REGEX: Final = {"/": r"\/", "\n": r"\n", "\r": r"\r"}
_CLOSE_IN_REGEX: Final = CLOSE.replace("/", r"\/")


def after_reasoning(grammar: Grammar, *, opened: bool, special: frozenset[str] = frozenset()) -> Grammar:
    """What `grammar` allows, behind a thought. `opened` says that the prompt ends inside one; otherwise there may be
    none. `special` are the model's `named_tokens`.

    Between the thought and the answer there may be an empty line, as models are used to. Options that a JSON schema is
    to be compiled with have to be in it, as the member `x-guidance`. Raises ValueError for a text
    that is not of the grammar's kind, where that can be seen without compiling it.
    """
    if CLOSE in special:  # and the same text spelt with other tokens would end the thought for its reader
        end = f"WITHOUT_END {CLOSE}"
        rules = [f"WITHOUT_END: /(?s:.*)/ & ~/(?s:.*){_CLOSE_IN_REGEX}(?s:.*)/"]
    else:
        end = "to_end"
        rules = [f"to_end[lazy]: /(?s:.*){_CLOSE_IN_REGEX}/"]
    thought = rf'{end} ("\n\n" | "\n")?'
    start = f"{thought} answer" if opened else f"({tag(OPEN, special)} {thought})? answer"
    text = "\n".join([HEADER, f"start: {start}", *rules, _answer(grammar)]) + "\n"
    return Grammar(GrammarKind.LARK, text, grammar.param)


def _answer(grammar: Grammar) -> str:
    """The rule `answer`."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return f"answer: %json {_schema(grammar.text)}"
        case GrammarKind.REGEX:
            return f"answer: ANSWER\nANSWER: /{_SLASH_OR_LINE.sub(_in_regex, grammar.text)}/"
        case GrammarKind.CHOICE:
            return f"answer: ANSWER\nANSWER: {' | '.join(map(literal, _choices(grammar.text)))}"
        case GrammarKind.LARK:
            return f"answer: %lark {{\n{grammar.text}\n}}"


def _in_regex(match: re.Match[str]) -> str:
    """Lark ends a regex at a slash and wants it on one line; what has a backslash already stays."""
    return _IN_REGEX.get(match[0], match[0])


def _schema(text: str) -> str:
    schema = _load(text)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema has to be an object")
    return json.dumps(schema)


def _choices(text: str) -> list[str]:
    choices = _load(text)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("a choice has to be a list of texts")
    return choices


def _load(text: str) -> object:
    try:
        loaded: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the grammar is no JSON") from None
    return loaded
