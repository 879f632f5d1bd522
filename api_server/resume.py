"""Resumable streams: what another worker needs to go on with one, and how a reader says where it has come to.

The engine keeps a request's tokens, and beside them what its frontend put in: the request itself, as it came. Whoever
resumes it admits that again, which gives the same prompt, stop strings and shape, and tells the answer from the log.
"""

import re
import time
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.admission import Admission
from api_server.errors import ApiError
from api_server.form import EVENTS, Form
from api_server.job import Job
from api_server.render import ResumableRenderer
from api_server.render.chat import ChatRenderer
from api_server.render.completion import CompletionRenderer
from api_server.render.plain import GenerateRenderer, StreamRenderer
from api_server.reply import reply, reply_stream
from api_server.schema.requests import ChatRequest, CompletionRequest, PlainRequest
from api_server.teller import NumberedTeller

MAX_BODY: Final = 1 << 20  # bytes of a request that the engine keeps; it may keep some hundreds
_COUNTS: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,10})*")


class Recipe(msgspec.Struct, frozen=True, array_like=True):
    """How an answer was asked for: on which route, and with which body."""

    route: str
    body: bytes
    created: int = 0  # unix seconds


class _Way(NamedTuple):
    kind: type[Any]
    admit: Callable[[Admission, Any], Awaitable[Job]]
    renderer: Callable[[Job], ResumableRenderer]


CHAT: Final = "chat"
COMPLETION: Final = "completion"
GENERATE: Final = "generate"
STREAM: Final = "stream"
_WAYS: Final = {
    CHAT: _Way(ChatRequest, Admission.chat, ChatRenderer),
    COMPLETION: _Way(CompletionRequest, Admission.completion, CompletionRenderer),
    GENERATE: _Way(PlainRequest, Admission.generate, lambda job: GenerateRenderer(job, time.perf_counter)),
    STREAM: _Way(PlainRequest, Admission.stream, lambda job: StreamRenderer(job, resumable=True)),
}
_recipe: Final = msgspec.msgpack.Decoder(Recipe)


async def reply_resumable(
    request: Request,
    job: Job,
    renderer: ResumableRenderer,
    recipe: Recipe,
    form: Form = EVENTS,
    *,
    announces: bool = False,
) -> ASGIApp:
    """The response to an admitted request, which the engine keeps if the job says so. Raises ApiError."""
    if not job.resumable:
        return await reply(request, job, renderer, form)
    if form is not EVENTS:
        raise ApiError("unsupported_parameter", "Only server-sent events can be resumed.", "stream_options")
    if len(recipe.body) > MAX_BODY:
        raise ApiError("request_too_large", f"A request whose stream can be resumed has at most {MAX_BODY} bytes.")
    meta = msgspec.msgpack.encode(msgspec.structs.replace(recipe, created=job.created))
    job = replace(job, submission=replace(job.submission, meta=meta))
    return await reply_stream(request, job, partial(NumberedTeller, job, renderer, announces=announces))


async def again(admission: Admission, rid: str, meta: bytes) -> tuple[Job, ResumableRenderer]:
    """The job that an engine kept, and a renderer that has told nothing of it yet."""
    recipe = _recipe.decode(meta)
    way = _WAYS[recipe.route]
    admission = copy(admission)
    admission.queue_full = lambda: False  # it has had its turn
    job = await way.admit(admission, msgspec.json.decode(recipe.body, type=way.kind))
    submission = replace(job.submission, rid=rid, meta=meta)
    job = replace(job, resumable=True, stream=True, created=recipe.created, submission=submission)
    return job, way.renderer(job)


def seen_of(text: str, rid: str, param: str) -> list[int]:
    """Output tokens of each sequence, as an event of the stream told them: `<id>.<count>.<count>`, or the counts
    alone. Raises ApiError for anything else, and for another stream's."""
    counts = text.removeprefix(f"{rid}.")
    if not _COUNTS.fullmatch(counts):
        raise ApiError("invalid_request_error", f"`{param}` is no position of the stream `{rid}`.", param)
    return list(map(int, counts.split(".")))


def check_seen(seen: list[int], job: Job, param: str) -> None:
    """Raises ApiError for positions of another number of sequences, or that no answer to this request can reach."""
    size = len(job.submission.prompts) * job.submission.n
    if len(seen) != size:
        raise ApiError("invalid_request_error", f"`{param}` needs {size} numbers, one for each choice.", param)
    if max(seen) > job.submission.sampling.max_tokens:
        raise ApiError("invalid_request_error", f"`{param}` is beyond the answer's end.", param)
