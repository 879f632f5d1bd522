"""What one step runs: plain numbers and references, no tensors. Made by the scheduler, read by the model runner."""

from dataclasses import dataclass, field

from engine_core.request import Request
from protocol.prompt_logprobs import PromptLogprobs


@dataclass(slots=True)
class Row:
    """Tokens `start` … `start + count` of one request: a prefill chunk, or the one token of a decode.

    `targets` are the prompt positions whose log probabilities are wanted of this row; each comes from the logits of the
    position before it. Whoever collects the step puts them into `prompt_logprobs`.
    """

    request: Request
    start: int
    count: int
    samples: bool  # the chunk reaches the end of the request's tokens, so its last position yields the next one
    targets: range = range(0)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Length of the sequence in the cache once this row has run."""
        return self.start + self.count


@dataclass(slots=True)
class Batch:
    """One step. `rows` hold each request at most once. `admitted` are those that got their slot in this step: whatever
    the runner and sampler keep per slot starts afresh for them."""

    rows: list[Row] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def sampling(self) -> list[Request]:
        """Requests that get a token from this step, in the order of the sampler's rows."""
        return [row.request for row in self.rows if row.samples]

    @property
    def scoring(self) -> list[Row]:
        """Rows of which log probabilities of the prompt are wanted."""
        return [row for row in self.rows if row.targets]
