"""One sequence on its way through the engine: its tokens, its place in the cache, and how it ends."""

from array import array
from collections.abc import Sequence

import numpy as np

from protocol.messages import FinishReason, FirstToken, TokenLogprobs
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import SamplingParams
from protocol.tokens import TOKEN_BYTES

NO_SLOT = -1


def highest(prompt: bytes) -> int:
    """The largest id of a packed prompt."""
    return int(np.frombuffer(prompt, "<u4", len(prompt) // TOKEN_BYTES).max())


class Request:
    """State of one choice of one prompt. `tokens` is prompt and output in one list, and the output part is the log that
    delivery, replay and resume read from; positions in it never change. It is an array, because a list of a long prompt
    takes milliseconds to make and to free.

    Of `tokens`, the first `computed` have their keys and values in `blocks`; the scheduler moves it on when it
    schedules, so it includes a step in flight. `slot` is the row of the persistent tables on the device while running.
    """

    __slots__ = (
        "arrival_s",
        "blocks",
        "cached",
        "choice",
        "computed",
        "delivered",
        "ended",
        "failure",
        "finish",
        "first_scheduled_s",
        "first_token_s",
        "handle",
        "hashes",
        "held",
        "in_flight",
        "key",
        "leader",
        "logprobs",
        "order",
        "owner",
        "preemptions",
        "priority",
        "prompt_delivered",
        "prompt_len",
        "prompt_logprobs",
        "replayed",
        "rid",
        "salt",
        "sampling",
        "sealed",
        "seed",
        "slot",
        "stop_token",
        "tokens",
    )

    def __init__(
        self,
        handle: int,
        rid: str,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        owner: bytes = b"",
        key: bytes = b"",
        seed: int = 0,
        choice: int = 0,
        out: Sequence[int] = (),
        salt: bytes = b"",
        priority: int = 0,
        arrival_s: float = 0.0,
        leader: "Request | None" = None,
    ) -> None:
        self.handle = handle
        self.rid = rid
        self.owner = owner  # the frontend that reads it
        self.key = key  # digest of the API key that it was made with
        self.sampling = sampling
        self.seed = seed
        self.choice = choice
        self.salt = salt
        self.priority = priority
        self.arrival_s = arrival_s
        self.order = -1  # of arrival, among those of the same priority and time; the scheduler's
        self.leader = leader  # the sibling whose prefill this one waits for, to share its blocks

        self.tokens = array("I", prompt)
        self.tokens.extend(out)
        self.prompt_len = len(prompt)
        self.replayed = len(out)  # output tokens that an earlier engine produced and counted
        self.delivered = len(out)  # output tokens that the owner has
        self.logprobs: list[TokenLogprobs] | None = None if sampling.logprobs is None else []
        # Of the prompt, in order; None where nobody asked. The first choice has them for all, and whoever sends output
        # along has them already, because they go out before it.
        wanted = sampling.prompt_logprobs is not None and choice == 0 and not out
        self.prompt_logprobs: list[PromptLogprobs] | None = [] if wanted else None
        self.prompt_delivered = 0  # entries of this list that the owner has

        self.computed = 0
        self.cached: int | None = None  # prompt tokens found in the prefix cache when first scheduled
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []  # of the full blocks of `tokens`, as far as they were needed
        self.sealed = 0  # of the first blocks, how many are in the prefix cache or lost to an equal one
        self.slot = NO_SLOT
        self.in_flight = 0  # steps launched and not yet settled that hold this request
        self.preemptions = 0
        self.held = False  # not to be scheduled: its grammar's mask is yet to come

        self.ended = False  # finished, failed or aborted: no further token counts
        self.finish: FinishReason | None = None
        self.stop_token: int | None = None
        self.failure: tuple[str, str] | None = None  # code and message; an abort by its owner has none
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None

    @property
    def out_len(self) -> int:
        """Output tokens so far, replayed ones included."""
        return len(self.tokens) - self.prompt_len

    @property
    def out(self) -> list[int]:
        return self.tokens[self.prompt_len :].tolist()

    @property
    def pending(self) -> int:
        """Tokens that still lack keys and values. One, for a request that decodes."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """All of the prompt is computed and the first token is there."""
        return self.pending == 1 and self.out_len > 0

    @property
    def unscored(self) -> int:
        """The first prompt position whose log probability is wanted and not there yet; behind the prompt if there is
        none."""
        if self.prompt_logprobs is None:
            return self.prompt_len
        return self.prompt_logprobs[-1].end if self.prompt_logprobs else 1

    def targets(self, count: int) -> range:
        """The prompt positions whose log probabilities are wanted of its next `count` tokens."""
        return range(max(self.computed + 1, self.unscored), min(self.computed + count + 1, self.prompt_len))

    def within(self, rows: int) -> int:
        """How many of its next tokens have no more than `rows` targets."""
        first = max(self.computed + 1, self.unscored)
        return self.pending if first + rows >= self.prompt_len else first + rows - 1 - self.computed

    @property
    def first(self) -> FirstToken:
        """Timing of the first token, once there is one."""
        scheduled = self.first_scheduled_s if self.first_scheduled_s is not None else self.arrival_s
        token = self.first_token_s if self.first_token_s is not None else scheduled
        return FirstToken(scheduled - self.arrival_s, token - scheduled, self.cached or 0)
