"""One HTTP request as the engine sees it. Knows nothing of text."""

from dataclasses import dataclass

from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Submission:
    """Token ids, and nothing left to default."""

    rid: str
    prompts: list[list[int]]
    n: int
    sampling: SamplingParams
    seed: int
    salt: bytes = b""
    priority: int = 0
    meta: bytes = b""
