"""Responses: the `response` object, and the events that build it up, in the order in which OpenAI sends them."""

from collections.abc import Callable
from typing import Any, Final, assert_never

from msgspec.structs import replace

from api_server.errors import ApiError
from api_server.job import Job
from api_server.render.frame import SSE, Framing, to_json
from api_server.render.items import begun, failure_of, item, item_id, usage_of
from api_server.render.logprobs import chat_logprobs
from api_server.render.named import event_open
from api_server.render.parts import Change, Closed, Grown, Kind, Opened, Part, Parts
from api_server.schema import responses_events as events
from api_server.schema.responses import TokenLogprob, Usage
from api_server.schema.responses_api import (
    IncompleteDetails,
    OutputItem,
    OutputText,
    ReasoningText,
    ResponseObject,
    ResponsesRequest,
)
from api_server.text import Piece
from protocol.messages import FinishReason

DELTAS: Final[dict[Kind, str]] = {
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


class ResponsesRenderer:
    """The first two events go out before the first token. Used once."""

    def __init__(self, job: Job, request: ResponsesRequest, clock: Callable[[], float], framing: Framing = SSE) -> None:
        """`clock` tells unix seconds, for when the response was complete."""
        self._job: Final = job
        self._clock: Final = clock
        self._framing: Final = framing
        self._begun: Final = begun(job, request)
        self._parts: Final = Parts(job.reader() if job.reader else None)
        self._logprobs: Final[list[TokenLogprob]] = []
        self._number = 0  # of the next event
        self._length_reached = False
        self._delta_open = b""  # of the part that is open

    def head(self) -> bytes:
        return self._event(events.Created, response=self._begun) + self._event(events.InProgress, response=self._begun)

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        return b"".join([self._changed(change, piece) for change in self._feed(piece)])

    def tail(self, usage: Usage) -> bytes:
        kind = events.Incomplete if self._length_reached else events.Completed
        return self._event(kind, response=self._ended(usage))

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        self._feed(pieces[0])
        self._told(pieces[0])
        return to_json(self._ended(usage))

    def failure(self, error: ApiError) -> bytes:
        """How a stream that has begun ends without success. Some clients look for the response's status, others stop
        only at an error."""
        head = b"" if self._number else self.head()
        failed = replace(self._begun, status="failed", output=self._output(), error=failure_of(error))
        told = error.details
        return (
            head
            + self._event(events.Failed, response=failed)
            + self._event(events.ErrorEvent, code=told.code, message=told.message, param=told.param, error=told)
        )

    # ------------------------------------------------------------------------------------------------ the answer

    def _feed(self, piece: Piece) -> list[Change]:
        self._length_reached = piece.finish is FinishReason.LENGTH
        return self._parts.feed(piece)

    def _told(self, piece: Piece) -> list[TokenLogprob]:
        """The log probabilities of the piece, which is text."""
        rendered = chat_logprobs(piece, self._job.vocabulary)
        if rendered is None:
            return []
        self._logprobs.extend(rendered.content)
        return rendered.content

    def _ended(self, usage: Usage) -> ResponseObject:
        cut = self._length_reached
        return replace(
            self._begun,
            status="incomplete" if cut else "completed",
            output=self._output(),
            usage=usage_of(usage, self._parts.reasoning_tokens),
            incomplete_details=IncompleteDetails("max_output_tokens") if cut else None,
            completed_at=None if cut else int(self._clock()),
        )

    def _output(self) -> list[OutputItem]:
        return [self._ended_item(part) for part in self._parts.all]

    def _ended_item(self, part: Part) -> OutputItem:
        return item(part, self._job.submission.rid, "completed" if part.complete else "incomplete", self._logprobs)

    # ------------------------------------------------------------------------------------------------ events

    def _event(self, kind: type[events.Event], **members: Any) -> bytes:
        event = kind(sequence_number=self._number, **members)
        self._number += 1
        name = str(kind.__struct_config__.tag)
        return event_open(name, self._framing) + to_json(event) + self._framing.after

    def _changed(self, change: Change, piece: Piece) -> bytes:
        match change:
            case Opened(part):
                return self._opened(part)
            case Grown(part, text):
                return self._grown(part, text, piece)
            case Closed(part):
                return self._closed(part)
            case _:
                assert_never(change)

    def _opened(self, part: Part) -> bytes:
        where, delta = self._where(part), DELTAS[part.kind]
        self._delta_open = event_open(delta, self._framing) + to_json({"type": delta, **where})[:-1]
        begun = item(part, self._job.submission.rid, "in_progress", [])
        added = self._event(events.ItemAdded, output_index=part.index, item=begun)
        if part.kind == "call":
            return added
        return added + self._event(events.PartAdded, part=_content(part.kind, "", []), **where)

    def _grown(self, part: Part, text: str, piece: Piece) -> bytes:
        """On every token's way: bytes put between bytes."""
        logprobs = b""
        if part.kind == "text":
            logprobs = b',"logprobs":' + (to_json(self._told(piece)) if piece.logprobs else b"[]")
        number, self._number = self._number, self._number + 1
        close = self._framing.after
        return b'%b,"sequence_number":%d,"delta":%b%b}%b' % (self._delta_open, number, to_json(text), logprobs, close)

    def _closed(self, part: Part) -> bytes:
        where = self._where(part)
        match part.kind:
            case "call":
                done = self._event(events.ArgumentsDone, name=part.name, arguments=part.text, **where)
            case "reasoning":
                done = self._event(events.ReasoningDone, text=part.text, **where)
            case "text":
                done = self._event(events.OutputTextDone, text=part.text, logprobs=self._logprobs, **where)
        if part.kind != "call":
            done += self._event(events.PartDone, part=_content(part.kind, part.text, self._logprobs), **where)
        return done + self._event(events.ItemDone, output_index=part.index, item=self._ended_item(part))

    def _where(self, part: Part) -> dict[str, object]:
        where: dict[str, object] = {"output_index": part.index, "item_id": item_id(part, self._job.submission.rid)}
        return where if part.kind == "call" else where | {"content_index": 0}


def _content(kind: Kind, text: str, logprobs: list[TokenLogprob]) -> OutputText | ReasoningText:
    return ReasoningText(text) if kind == "reasoning" else OutputText(text, logprobs)
