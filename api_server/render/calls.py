"""Calls in the two shapes of chat completions: `tool_calls`, and the older `function_call`, of which there is one and
which has no id.

A call's id is made of the request's and of the call's place in the answer, so that it is the same whoever renders it.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from api_server.job import Job
from api_server.parsing import CallDelta
from api_server.render.frame import FINISH_NAMES, to_json
from api_server.schema.responses import CalledFunction, ChatFinishName, MadeToolCall
from protocol.messages import FinishReason

ID_BYTES: Final = 12


def told_calls(calls: Sequence[CallDelta], choice: int, job: Job) -> bytes:
    """The member of a delta that tells these parts of calls, of which each call has one at most. Its first part has
    its id, type and name, and the beginning of its arguments with them: one token told both."""
    if job.legacy_calls:
        return b'"function_call":' + _function(calls[0])
    parts = []
    for call in calls:
        head = b""
        if call.name is not None:
            head = b'"id":%b,"type":"function",' % to_json(call_id(job, choice, call.index))
        parts.append(b'{"index":%d,%b"function":%b}' % (call.index, head, _function(call)))
    return b'"tool_calls":[%b]' % b",".join(parts)


def whole_call(call: CallDelta, choice: int, job: Job) -> MadeToolCall:
    return MadeToolCall(call_id(job, choice, call.index), "function", CalledFunction(call.name or "", call.arguments))


def call_id(job: Job, choice: int, index: int) -> str:
    place = f"{job.submission.rid}.{choice}.{index}"
    return "call_" + blake2b(place.encode(), digest_size=ID_BYTES).hexdigest()


def chat_finish_name(reason: FinishReason, calls: int, job: Job) -> ChatFinishName:
    """As OpenAI has it: an answer with calls ended for them, unless a call of this function was all it could be. There
    is no name of its own for the older functions."""
    return "tool_calls" if reason is FinishReason.STOP and calls and not job.named_call else FINISH_NAMES[reason]


def _function(call: CallDelta) -> bytes:
    name = b"" if call.name is None else b'"name":%b,' % to_json(call.name)
    return b'{%b"arguments":%b}' % (name, to_json(call.arguments))
