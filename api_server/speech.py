"""How one model writes thoughts and calls: what its answers are held to, and how they are read.

Puts together what `parsing` knows of dialects with what a request wants. Knows no HTTP.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from api_server.errors import ApiError
from api_server.grammar import RESPONSE_FORMAT
from api_server.parsing import Reader, hermes, reasoning, select
from api_server.parsing.after_reasoning import after_reasoning
from api_server.parsing.forced import HEADER, named_tokens, tool_grammar
from api_server.parsing.unmarked import Unmarked
from api_server.tools import Calling
from protocol.sampling import Grammar, GrammarKind

TAIL_TOKENS: Final = 32  # of a prompt: more than a tag takes, however it is spelt


@dataclass(frozen=True, slots=True)
class Opening:
    """Where an answer begins: `thought` says whether inside a thought, and is None where none can begin any more;
    `over`, that the prompt ends with one that is complete."""

    thought: bool | None = None
    over: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """How an answer is read. `reader` makes a reader for each choice; None if all that is written is content.
    `visible` are the special tokens that the readers have to see."""

    reader: Callable[[], Reader] | None = None
    visible: frozenset[int] = frozenset()


class Speech:
    """One model's dialects: those that the operator named, or that its chat template shows."""

    def __init__(
        self, template: str | None, added: Iterable[tuple[int, str, bool]], *, tool_parser: str, reasoning_parser: str
    ) -> None:
        """`added` are the tokenizer's added tokens: id, text, and whether it is special. Raises ValueError for a parser
        that does not exist."""
        tokens = list(added)
        self._tools: Final = select.tool_dialect(tool_parser, template)
        self._reasoning: Final = select.reasoning_dialect(reasoning_parser, template)
        self._named: Final = named_tokens((text, special) for _, text, special in tokens)
        self._special: Final = {text: token for token, text, special in tokens if special}

    def opening(self, prompt_tail: str, resumed: str | None) -> Opening:
        """`prompt_tail` is the text of the prompt's last TAIL_TOKENS, `resumed` that of the message that the answer
        continues, if it does."""
        if self._reasoning is None:
            return Opening()
        if resumed:
            inside = resumed.rfind(reasoning.OPEN) > resumed.rfind(reasoning.CLOSE)
            return Opening(True if inside else None)
        return Opening(self._reasoning.opened(prompt_tail), select.closes_thought(prompt_tail))

    def grammar(self, calling: Calling | None, wanted: Grammar | None, opening: Opening) -> Grammar | None:
        """What the whole output must match, thoughts included; None if that is anything.

        Raises ApiError for functions that can't be forced.
        """
        answer, calls = (wanted, None) if calling is None else self._answer(calling, wanted)
        if answer is None:
            return None
        start, rules = "answer", []
        if calls is not None:
            start, rules = "(calls | answer)", [_rule("calls", calls)]
        if opening.thought is not None and not opening.over:
            start, rule = after_reasoning(start, opened=opening.thought, special=self._named)
            rules.append(rule)
        return replace(answer, frame="\n".join((HEADER, f"start: {start}", *rules))) if rules else answer

    def reading(self, calling: Calling | None, opening: Opening, *, hides_special: bool) -> Reading:
        """`hides_special`: special tokens are not for the client."""
        dialect = None if calling is None else self._tools
        forced = calling is not None and calling.forced
        if dialect is None and forced:
            dialect = select.WITHOUT_DIALECT
        if dialect is None and opening.thought is None:
            return Reading()
        tags = dialect.visible if dialect is not None else frozenset()
        if self._reasoning is not None:
            tags |= self._reasoning.visible
        marks = tags & self._special.keys()
        names = [function.name for function in calling.allowed] if calling is not None else []
        max_calls = calling.max_calls if calling is not None else None

        def reader() -> Reader:
            made = select.reader(dialect, names, max_calls=max_calls, calls_alone=forced, opened=opening.thought)
            return Unmarked(made, marks) if marks and hides_special else made

        return Reading(reader, frozenset(self._special[mark] for mark in marks))

    def _answer(self, calling: Calling, wanted: Grammar | None) -> tuple[Grammar | None, Grammar | None]:
        """What stands behind the thought, if there is one, and the calls that may stand there instead.

        A model that may call and may answer in a format does either. `structured_outputs` are of the whole output, so
        that nothing is called beside them.
        """
        if calling.forced:
            return self._calls(calling), None
        if wanted is not None:
            formatted = wanted.param == RESPONSE_FORMAT and self._tools is not None
            return wanted, self._calls(calling) if formatted else None
        strict = any(function.strict for function in calling.allowed)
        if strict and self._tools is not None and self._tools.name == "hermes" and hermes.OPEN in self._named:
            return _among_text(self._calls(calling), repeated=calling.parallel), None
        return None, None

    def _calls(self, calling: Calling) -> Grammar:
        dialect = None if self._tools is None else self._tools.name
        # A model that has never learnt to call would not know when to stop either: it makes one call.
        parallel = calling.parallel and dialect is not None
        try:
            calls = tool_grammar(calling.signatures, dialect, parallel=parallel, special=self._named)
        except ValueError as error:
            raise _bad(str(error), calling.param) from None
        return replace(calls, param=calling.param)


def _among_text(calls: Grammar, *, repeated: bool) -> Grammar:
    """Calls in the middle of text, which holds no token that opens one."""
    start = f"start: TEXT (calls TEXT){'*' if repeated else '?'}"
    rules = (HEADER, start, "TEXT: /(?s:.*)/", _rule("calls", calls))
    return Grammar(GrammarKind.LARK, "\n".join(rules) + "\n", calls.param)


def _rule(name: str, grammar: Grammar) -> str:
    return f"{name}: %lark {{\n{grammar.text}\n}}"


def _bad(message: str, param: str) -> ApiError:
    return ApiError("invalid_request_error", message, param)
