"""An admitted request: what goes to the engine, and what the rendering of its answer needs to know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from api_server.detokenize import Vocabulary
from api_server.parsing import Reader
from api_server.submission import Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A submission and how its answer is to look. `echo` is a text per prompt that goes before each of its choices;
    `echo_offsets` are where in it each of the prompt's tokens begins, if it is told with log probabilities."""

    submission: Submission
    vocabulary: Vocabulary
    model: str
    fingerprint: str
    created: int  # unix seconds
    ends: frozenset[int] = frozenset()  # the model's end-of-sequence tokens
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    echo: tuple[str, ...] | None = None
    echo_offsets: tuple[Sequence[int], ...] | None = None
    prompt_logprobs: int | None = None  # alternatives of each token to be told beside the choices; None is not at all
    prompt_only: bool = False  # max_tokens 0: the one token that the engine makes is nobody's
    resumable: bool = False
    timeout_s: float | None = None
    interval_s: float | None = None  # at least so long between two chunks; None is what the operator set
    reader: Callable[[], Reader] | None = None  # makes one for each choice; None if all that is written is content
    visible: frozenset[int] = frozenset()  # special tokens that are text all the same, for the readers
    named_call: bool = False  # the answer is a call of the one function that the request named
    legacy_calls: bool = False  # the request calls tools functions, and its answer has to, too
