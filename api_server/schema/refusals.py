"""Parameters that are understood but not served yet. Asking for one is a 400 that names it: a request is never answered
as if a parameter had not been there. Building a feature deletes its line here."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from api_server.errors import ApiError

Field = Callable[[str], Any]  # a request's field by name, None where the route has no such field


class Refusal(NamedTuple):
    param: str
    reason: str
    wanted: Callable[[Field], bool]


def _counted(field: Field) -> bool:
    options = field("stream_options")
    return options is not None and bool(options.include_usage or options.continuous_usage_stats)


NOT_SERVED: Final = (Refusal("suffix", "this model can't fill in the middle", lambda field: bool(field("suffix"))),)

CHAT_TEMPLATE: Final = Refusal(
    "chat_template",
    "a template is code, and requests can't bring their own",
    lambda field: field("chat_template") is not None,
)

# One prompt, one answer, and events that have room for its tokens alone.
NOT_ON_PLAIN_ROUTES: Final = (
    Refusal("n", "this route gives one answer per request", lambda field: (field("n") or 1) > 1),
    Refusal("echo", "this route does not repeat the prompt", lambda field: bool(field("echo"))),
    Refusal(
        "logprobs",
        "this route has no log probabilities; use /v1/completions",
        lambda field: field("logprobs") is not None and field("logprobs") is not False,
    ),
    Refusal(
        "prompt_logprobs",
        "this route has no log probabilities; use /v1/completions",
        lambda field: field("prompt_logprobs") is not None,
    ),
    Refusal("stream_options", "this route's events have no room for usage; use /v1/completions", _counted),
)

# /generate gives a token's id with each of its events, asked or not.
NOT_ON_STREAM_ROUTES: Final = (
    Refusal(
        "return_token_ids",
        "this route gives text alone; use /generate or /v1/completions",
        lambda field: bool(field("return_token_ids")),
    ),
)


def refuse(request: object, refusals: tuple[Refusal, ...]) -> None:
    """Raises ApiError unsupported_parameter for the first of `refusals` that the request asks for."""

    def field(name: str) -> Any:
        return getattr(request, name, None)

    for refusal in refusals:
        if refusal.wanted(field):
            message = f"The parameter `{refusal.param}` can't be served: {refusal.reason}."
            raise ApiError("unsupported_parameter", message, refusal.param)
