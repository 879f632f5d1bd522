"""One HTTP request as the engine sees it. Knows nothing of text."""

from dataclasses import dataclass
from functools import cached_property

from protocol.sampling import SamplingParams
from protocol.tokens import pack


@dataclass(frozen=True)
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

    @cached_property
    def packed(self) -> list[bytes]:
        """The prompts as they travel."""
        return [pack(prompt) for prompt in self.prompts]
