"""From a client's grammar to a matcher, with explicit limits; what llguidance refuses becomes a message for the client.

Bounds nothing in time or memory: this runs in a process that may die of it. Nothing is fetched: a reference to another
document is refused.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from protocol.sampling import JSON_WHITESPACE, Grammar, GrammarKind

MESSAGE_CHARS: Final = 300

# llguidance counts these, so that one grammar always ends alike. They alone keep no mask short: within the defaults,
# ten rules of a hundred pairs each take half a minute for their first one. Clocks do that (engine_core.grammar.bounds).
LIMITS: Final = LLParserLimits(
    max_items_in_row=8192,  # 2000 by default, which an object of 500 optional properties exceeds
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=20_000,  # of 1 to 2 kB each; 250,000 by default
    max_grammar_size=500_000,
    precompute_large_lexemes=True,
    verbose_errors=False,
)

_PLACE: Final = r"^at \d+\(\d+\): (failed to compile JSON schema: )?"  # in the Lark that is made of other grammars
OPTIONS: Final = "x-guidance"  # the member of a schema that tells llguidance how to read it
_GBNF: Final = re.compile(r"^\s*root\s*::=", re.MULTILINE)

_choices: Final = msgspec.json.Decoder(list[str])


class Refused(ValueError):
    """The grammar can't be used; the message says why, to whoever wrote it."""


class Compiler:
    """Compiles for one tokenizer."""

    def __init__(self, tokenizer: str, width: int, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is the text of a tokenizer.json, `width` that of the logits. Raises ValueError for a tokenizer
        whose tokens are no sequences of bytes."""
        eos = list(eos_token_ids) or None
        try:
            self.tokenizer = LLTokenizer(tokenizer, n_vocab=width, eos_token=eos)
        except ValueError:  # more tokens than logits: those beyond are never sampled
            self.tokenizer = LLTokenizer(tokenizer, eos_token=eos)
        self.eos_token_ids: list[int] = self.tokenizer.eos_tokens

    @property
    def row_bytes(self) -> int:
        """Of a mask: a bit for each token, in whole words of 32."""
        return -(-self.tokenizer.vocab_size // 32) * 4

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher before the first token. Raises Refused."""
        name = _NAMES[grammar.kind]
        try:
            lark = _READERS[grammar.kind](grammar.text)
        except RecursionError:
            raise Refused(f"{name} is nested too deep.") from None
        except Exception as error:  # each reader has its own
            raise Refused(f"{name} can't be read: {_first_line(str(error))}") from error
        if grammar.frame:
            lark = f"{grammar.frame}\nanswer: %lark {{\n{lark}\n}}"
        matcher = LLMatcher(self.tokenizer, lark, log_level=0, limits=LIMITS)
        if matcher.is_error():
            is_theirs = grammar.kind is GrammarKind.LARK and not grammar.frame
            why = reason(matcher) if is_theirs else re.sub(_PLACE, "", reason(matcher))
            raise Refused(f"{name} can't be enforced: {why}")
        return matcher


def reason(matcher: LLMatcher) -> str:
    """What is wrong with it, in a line."""
    lines = matcher.get_error().splitlines() or [matcher.stop_reason()]
    if lines[0] == "NoExtensionBias":
        return "no text matches it"
    detail = next((line for line in lines if line.startswith("error: ")), "")
    return f"{_first_line(lines[0])} {detail.removeprefix('error: ')}".strip()


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= MESSAGE_CHARS else f"{line[:MESSAGE_CHARS]} ..."


def _json_schema(text: str) -> str:
    schema = json.loads(text)
    if schema is True:
        schema = {}
    elif not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object")
    options = schema.get(OPTIONS, {})
    if isinstance(options, dict):  # else llguidance refuses them
        schema = {**schema, OPTIONS: {"whitespace_pattern": JSON_WHITESPACE, **options}}
    return f"start: %json {json.dumps(schema)}"


def _regex(text: str) -> str:
    """`\\d` is 0 to 9, as in JSON schemas; the other classes are Unicode's, as in Python."""
    return f"start: /{regex_to_lark(text, 'd')}/"


def _choice(text: str) -> str:
    choices = _choices.decode(text)
    if not choices:
        raise ValueError("there is no choice")
    return "start: " + " | ".join(map(json.dumps, choices))  # Lark's strings are JSON's


def _lark(text: str) -> str:
    """Or the GBNF that vLLM's clients write, too."""
    return gbnf_to_lark(text) if _GBNF.search(text) else text


# To Lark, whose rule `start` they are.
_READERS: Final[dict[GrammarKind, Callable[[str], str]]] = {
    GrammarKind.JSON_SCHEMA: _json_schema,
    GrammarKind.REGEX: _regex,
    GrammarKind.CHOICE: _choice,
    GrammarKind.LARK: _lark,
}
_NAMES: Final = {
    GrammarKind.JSON_SCHEMA: "The JSON schema",
    GrammarKind.REGEX: "The regular expression",
    GrammarKind.CHOICE: "The list of choices",
    GrammarKind.LARK: "The grammar",
}
