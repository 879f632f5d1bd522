"""The events of a streamed response. Each has its number within the stream, from 0."""

from msgspec import Struct

from api_server.errors import ErrorBody
from api_server.schema.responses import TokenLogprob
from api_server.schema.responses_api import OutputItem, OutputText, ReasoningText, ResponseObject


class Event(Struct, kw_only=True, frozen=True, tag_field="type"):
    sequence_number: int


class OfResponse(Event, kw_only=True, frozen=True):
    response: ResponseObject


class Created(OfResponse, frozen=True, tag="response.created"):
    pass


class InProgress(OfResponse, frozen=True, tag="response.in_progress"):
    pass


class Completed(OfResponse, frozen=True, tag="response.completed"):
    pass


class Incomplete(OfResponse, frozen=True, tag="response.incomplete"):
    """Complete but for its limit, which it reached."""


class Failed(OfResponse, frozen=True, tag="response.failed"):
    pass


class OfItem(Event, kw_only=True, frozen=True):
    output_index: int
    item: OutputItem


class ItemAdded(OfItem, frozen=True, tag="response.output_item.added"):
    pass


class ItemDone(OfItem, frozen=True, tag="response.output_item.done"):
    pass


class InItem(Event, kw_only=True, frozen=True):
    output_index: int
    item_id: str


class InPart(InItem, kw_only=True, frozen=True):
    content_index: int = 0  # items have one part each


class PartAdded(InPart, kw_only=True, frozen=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(InPart, kw_only=True, frozen=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class OutputTextDelta(InPart, kw_only=True, frozen=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(InPart, kw_only=True, frozen=True, tag="response.output_text.done"):
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDelta(InPart, kw_only=True, frozen=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(InPart, kw_only=True, frozen=True, tag="response.reasoning_text.done"):
    text: str


class ArgumentsDelta(InItem, kw_only=True, frozen=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(InItem, kw_only=True, frozen=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class ErrorEvent(Event, kw_only=True, frozen=True, tag="error"):
    """The members are where OpenAI documents them, and once more in `error`, where it sends them."""

    code: str | None
    message: str
    param: str | None
    error: ErrorBody


ResponseEvent = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | OutputTextDelta
    | OutputTextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
    | ErrorEvent
)
