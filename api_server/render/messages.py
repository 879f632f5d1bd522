"""Anthropic's Messages: the `message` object, and the events that build it up, in the order in which Anthropic sends
them."""

from typing import Any, Final, assert_never

import msgspec

from api_server.errors import ApiError
from api_server.job import Job
from api_server.render.frame import SSE, Framing, to_json
from api_server.render.named import event_open
from api_server.render.parts import Change, Closed, Grown, Kind, Opened, Part, Parts
from api_server.schema.anthropic import (
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageDelta,
    MessageEvent,
    MessageObject,
    MessageStart,
    MessageStop,
    MessageUsage,
    OutputBlock,
    Ping,
    SignatureDelta,
    Stop,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from api_server.schema.responses import Usage
from api_server.text import Piece
from protocol.messages import FinishReason

MESSAGE_PREFIX: Final = "msg_"
CALL_PREFIX: Final = "toolu_"
DELTAS: Final[dict[Kind, type[TextDelta | ThinkingDelta | InputDelta]]] = {
    "text": TextDelta,
    "reasoning": ThinkingDelta,
    "call": InputDelta,
}


class MessagesRenderer:
    """The first event comes with the first token, because it tells how much of the prompt was cached. Used once."""

    def __init__(self, job: Job, framing: Framing = SSE) -> None:
        self._job: Final = job
        self._framing: Final = framing
        self._parts: Final = Parts(job.reader() if job.reader else None)
        self._begun = False
        self._stop_reason: StopReason | None = None
        self._stop_sequence: str | None = None
        self._delta_open = self._delta_close = b""  # of the block that is open

    def head(self) -> bytes:
        return b""

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        changes = self._feed(piece)
        events = [] if self._begun else [self._start(piece)]
        self._begun = True
        return b"".join([*events, *map(self._changed, changes)])

    def tail(self, usage: Usage) -> bytes:
        stop = MessageDelta(Stop(self._stop_reason, self._stop_sequence), _usage(usage))
        return self._event(stop) + self._event(MessageStop())

    def whole(self, pieces: list[Piece], usage: Usage) -> bytes:
        self._feed(pieces[0])
        return to_json(
            MessageObject(
                self._job.submission.rid,
                self._job.model,
                [self._block(part) for part in self._parts.all],
                _usage(usage),
                self._stop_reason,
                self._stop_sequence,
            )
        )

    def failure(self, error: ApiError) -> bytes:
        """How a stream that has begun ends without success."""
        return event_open("error", self._framing) + error.anthropic_body + self._framing.after

    def _feed(self, piece: Piece) -> list[Change]:
        changes = self._parts.feed(piece)
        if piece.finish is FinishReason.LENGTH:
            self._stop_reason = "max_tokens"
        elif isinstance(piece.stop_reason, str):
            self._stop_reason, self._stop_sequence = "stop_sequence", piece.stop_reason
        elif piece.finish is not None:
            self._stop_reason = "tool_use" if self._parts.called else "end_turn"
        return changes

    def _block(self, part: Part) -> OutputBlock:
        if part.kind == "text":
            return TextBlock(part.text)
        if part.kind == "reasoning":
            return ThinkingBlock(part.text)
        own_id = self._job.submission.rid.removeprefix(MESSAGE_PREFIX)
        return ToolUseBlock(f"{CALL_PREFIX}{own_id}{part.index:02x}", part.name, _arguments(part.text))

    # ------------------------------------------------------------------------------------------------ events

    def _event(self, event: MessageEvent) -> bytes:
        name = str(event.__struct_config__.tag)
        return event_open(name, self._framing) + to_json(event) + self._framing.after

    def _start(self, piece: Piece) -> bytes:
        prompt = sum(map(len, self._job.submission.prompts))
        cached = piece.first.cached_tokens if piece.first is not None else 0
        usage = MessageUsage(prompt - cached, cached, 0)
        return self._event(MessageStart(MessageObject(self._job.submission.rid, self._job.model, [], usage)))

    def _changed(self, change: Change) -> bytes:
        match change:
            case Opened(part):
                return self._opened(part)
            case Grown(_, text):
                return self._delta_open + to_json(text) + self._delta_close
            case Closed(part):
                return self._closed(part)
            case _:
                assert_never(change)

    def _opened(self, part: Part) -> bytes:
        delta = self._event(BlockDelta(part.index, DELTAS[part.kind]("")))
        self._delta_open, _, self._delta_close = delta.rpartition(b'""')  # on a token's way, bytes put between bytes
        start = self._event(BlockStart(part.index, self._block(part)))
        return start if part.index else start + self._event(Ping())

    def _closed(self, part: Part) -> bytes:
        stop = self._event(BlockStop(part.index))
        if part.kind != "reasoning":
            return stop
        return self._event(BlockDelta(part.index, SignatureDelta(""))) + stop


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(usage.prompt_tokens - cached, cached, usage.completion_tokens)


def _arguments(text: str) -> dict[str, Any]:
    """Empty for those that are no object, as when the answer reached its limit among them."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
