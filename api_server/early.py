"""What can be refused before a prompt is rendered and tokenised, which for a long one is most of the work.

All of it would be refused later, by `protocol.validate`, whatever the prompt turns out to be.
"""

from typing import Final

from api_server.errors import ApiError
from api_server.schema.requests import GenerationRequest
from protocol import validate
from protocol.messages import Limits, ModelCard
from protocol.sampling import SamplingParams

MAX_SEQUENCES: Final = 512  # prompts × n


def check(request: GenerationRequest, card: ModelCard, limits: Limits, default_tokens: int | None) -> None:
    """Token ids, limits that contradict each other, and more output than a prompt of one token would leave room for.
    `default_tokens` is the route's max_tokens, None for the room that is left. Raises ApiError."""
    room = validate.room(card, limits)
    param, asked = _max_tokens(request)
    if asked is not None and asked >= room:
        message = (
            f"This model's maximum context length is {room} tokens, prompt and completion together. However, you "
            f"requested {asked} tokens for the completion alone."
        )
        raise ApiError("context_length_exceeded", message, param)
    sampling = SamplingParams(
        max_tokens=asked or default_tokens or max(1, room - 1),
        min_tokens=request.min_tokens or 0,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logit_bias=tuple((request.logit_bias or {}).items()),
        allowed_token_ids=None if request.allowed_token_ids is None else tuple(request.allowed_token_ids),
    )
    try:
        validate.check_sampling(sampling, card.vocab_size)
    except validate.InvalidRequest as error:
        raise ApiError(error.code, error.message, error.param) from None
    check_count(request, 1)


def check_count(request: GenerationRequest, prompts: int) -> None:
    """The sums over `prompts` of them and the choices of each. Raises ApiError."""
    n = request.n or 1
    size = prompts * n
    if size > MAX_SEQUENCES:
        at_fault = "n" if n > 1 else "prompt"
        raise ApiError("invalid_request_error", f"prompts × n is {size}, at most {MAX_SEQUENCES}.", at_fault)
    param, asked = _max_tokens(request)
    total = size * (asked or 1)
    if total > validate.MAX_TOTAL_TOKENS:
        message = f"{param} over all prompts and choices is {total}, at most {validate.MAX_TOTAL_TOKENS}."
        raise ApiError("invalid_request_error", message, param)


def _max_tokens(request: GenerationRequest) -> tuple[str, int | None]:
    """The parameter that says it, and what it says."""
    newer: int | None = getattr(request, "max_completion_tokens", None)
    return ("max_tokens", request.max_tokens) if newer is None else ("max_completion_tokens", newer)
