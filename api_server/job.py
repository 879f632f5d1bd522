"""An admitted request: what goes to the engine, and what the rendering of its answer needs to know."""

from dataclasses import dataclass

from api_server.detokenize import Vocabulary
from api_server.submission import Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A submission and how its answer is to look. `echo` is a text per prompt that goes before each of its choices."""

    submission: Submission
    vocabulary: Vocabulary
    model: str
    fingerprint: str
    created: int  # unix seconds
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    echo: tuple[str, ...] | None = None
    timeout_s: float | None = None
