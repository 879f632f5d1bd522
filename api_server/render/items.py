"""The `response` object: what of it a request says, and an answer's parts as its items."""

from typing import Final

from api_server.errors import ApiError
from api_server.job import Job
from api_server.render.parts import Part
from api_server.schema.formats import TextFormat
from api_server.schema.responses import TokenLogprob, Usage
from api_server.schema.responses_api import (
    FunctionCallItem,
    InputTokensDetails,
    MessageItem,
    OutputItem,
    OutputText,
    OutputTokensDetails,
    Reasoning,
    ReasoningItem,
    ReasoningText,
    ResponseFailure,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
    Status,
    TextConfig,
)

RESPONSE_PREFIX: Final = "resp_"
ITEM_PREFIXES: Final = {"text": "msg_", "reasoning": "rs_", "call": "fc_"}
CALL_PREFIX: Final = "call_"
PLAIN: Final = TextConfig(TextFormat())


def begun(job: Job, request: ResponsesRequest) -> ResponseObject:
    """The response before its first item. It tells what holds, also where the request left it open."""
    sampling, text = job.submission.sampling, request.text or PLAIN
    return ResponseObject(
        id=job.submission.rid,
        created_at=job.created,
        model=job.model,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=request.reasoning or Reasoning(),
        safety_identifier=request.safety_identifier,
        temperature=sampling.temperature,
        text=text if text.format is not None else TextConfig(PLAIN.format, text.verbosity),
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=sampling.top_p,
        user=request.user,
    )


def item_id(part: Part, response_id: str) -> str:
    """Unique, and the same however the answer is delivered."""
    return f"{ITEM_PREFIXES[part.kind]}{_own(part, response_id)}"


def item(part: Part, response_id: str, status: Status, logprobs: list[TokenLogprob]) -> OutputItem:
    """The part as far as it has grown; one that has just begun has no content yet. `logprobs` are those of a text."""
    own_id = item_id(part, response_id)
    if part.kind == "call":
        return FunctionCallItem(own_id, status, CALL_PREFIX + _own(part, response_id), part.name, part.text)
    begins = status == "in_progress"
    if part.kind == "reasoning":
        return ReasoningItem(own_id, status, [] if begins else [ReasoningText(part.text)])
    return MessageItem(own_id, status, [] if begins else [OutputText(part.text, logprobs)])


def usage_of(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
        usage.completion_tokens,
        OutputTokensDetails(reasoning_tokens),
        usage.total_tokens,
    )


def failure_of(error: ApiError) -> ResponseFailure:
    """The nearest of OpenAI's codes for a response that failed once it had begun."""
    return ResponseFailure("invalid_prompt" if error.code == "request_quarantined" else "server_error", error.message)


def _own(part: Part, response_id: str) -> str:
    return f"{response_id.removeprefix(RESPONSE_PREFIX)}{part.index:02x}"
