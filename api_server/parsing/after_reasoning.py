"""A grammar that holds only from the end of the thought on: what a reasoning model thinks is free, its answer is not.

Knows how a thought is written, and nothing of the answer.
"""

from typing import Final

from api_server.parsing.forced import tag
from api_server.parsing.reasoning import CLOSE, OPEN

_CLOSE_IN_REGEX: Final = CLOSE.replace("/", r"\/")


def after_reasoning(answer: str, *, opened: bool, special: frozenset[str] = frozenset()) -> tuple[str, str]:
    """What `answer`, an expression of Lark, allows, behind a thought; and the rule that this needs. `opened` says that
    the prompt ends inside a thought; otherwise there may be none. `special` are the model's `named_tokens`.

    Between the thought and the answer there may be an empty line, as models are used to.
    """
    if CLOSE in special:  # and the same text spelt with other tokens would end the thought for its reader
        end = f"WITHOUT_END {CLOSE}"
        rule = f"WITHOUT_END: /(?s:.*)/ & ~/(?s:.*){_CLOSE_IN_REGEX}(?s:.*)/"
    else:
        end = "to_end"
        rule = f"to_end[lazy]: /(?s:.*){_CLOSE_IN_REGEX}/"
    thought = rf'{end} ("\n\n" | "\n")?'
    return (f"{thought} {answer}" if opened else f"({tag(OPEN, special)} {thought})? {answer}"), rule
