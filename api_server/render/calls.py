"""Calls in the two shapes of chat completions: `tool_calls`, and the older `function_call`, of which there is one and
which has no id.

A call's id is made of the request's and of the call's place in the answer, so that it is the same whoever renders it.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from api_server.job import Job
from api_server.parsing import CallDelta
from api_server.render.frame import FINISH_NAMES, to_json
from api_server.schema.responses import CalledFunction, ChatFinishName, MadeToolCall
from protocol.messages import FinishReason

ID_BYTES: Final = 12


def call_deltas(call: CallDelta, choice: int, job: Job) -> Iterator[bytes]:
    """The deltas of a part of a call. The first tells its name alone, all that follow its arguments alone, because
    there are clients that look for nothing else there."""
    if call.name is not None:
        function = b'{"name":%b,"arguments":""}' % to_json(call.name)
        if job.legacy_calls:
            yield b'{"function_call":%b}' % function
        else:
            name = to_json(call_id(job, choice, call.index))
            head = b'{"index":%d,"id":%b,"type":"function","function":%b}' % (call.index, name, function)
            yield b'{"tool_calls":[%b]}' % head
    if call.arguments:
        function = b'{"arguments":%b}' % to_json(call.arguments)
        if job.legacy_calls:
            yield b'{"function_call":%b}' % function
        else:
            yield b'{"tool_calls":[{"index":%d,"function":%b}]}' % (call.index, function)


def whole_call(call: CallDelta, choice: int, job: Job) -> MadeToolCall:
    return MadeToolCall(call_id(job, choice, call.index), "function", CalledFunction(call.name or "", call.arguments))


def call_id(job: Job, choice: int, index: int) -> str:
    place = f"{job.submission.rid}.{choice}.{index}"
    return "call_" + blake2b(place.encode(), digest_size=ID_BYTES).hexdigest()


def chat_finish_name(reason: FinishReason, calls: int, job: Job) -> ChatFinishName:
    """As OpenAI has it: an answer with calls ended for them, unless a call of this function was all it could be."""
    if reason is FinishReason.STOP and calls and not job.named_call:
        return "function_call" if job.legacy_calls else "tool_calls"
    return FINISH_NAMES[reason]
