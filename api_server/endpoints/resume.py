"""GET /v1/streams/{id}: goes on with a stream that was cut."""

from contextlib import ExitStack
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from api_server.disconnect import until_disconnect
from api_server.errors import ApiError
from api_server.frontend import frontend
from api_server.reply import Chunks, begin_deadline, interval_of
from api_server.resume import again, check_seen, seen_of
from api_server.sse import EventStream
from api_server.teller import NumberedTeller

MAX_ID_CHARS: Final = 128  # as on the wire; those that are made here are shorter
HEADER: Final = "Last-Event-ID"
QUERY: Final = "after"


async def resume_stream(request: Request) -> ASGIApp:
    """Goes on with a stream behind what its reader has seen, or tells it from its beginning. The stream must have been
    asked for with `stream_options.resumable`, and with the same API key."""
    rid: str = request.path_params["id"]
    last, after = request.headers.get(HEADER), request.query_params.get(QUERY)
    param, text = (HEADER, last) if last is not None else (QUERY, after)
    seen = None if text is None else seen_of(text, rid, param)
    with ExitStack() as owned:
        chunks = await until_disconnect(request, _rest(request, rid, seen, param, owned))
        owned.pop_all()  # from here on it is for the chunks to leave the stream
    return EventStream(chunks, rid, express=chunks.express)


async def resume_events(request: Request, last: str) -> ASGIApp:
    """The same for an EventSource, which comes back by itself after every end: 204 tells it that there is no more."""
    rid, _, _ = last.partition(".")
    with ExitStack() as owned:
        try:
            chunks = await until_disconnect(request, _rest(request, rid, seen_of(last, rid, HEADER), HEADER, owned))
        except ApiError as error:
            if error.code not in ("stream_not_found", "invalid_request_error"):
                raise
            return Response(status_code=204)
        if not await until_disconnect(request, chunks.more()):
            return Response(status_code=204)
        owned.pop_all()
    return EventStream(chunks, rid, express=chunks.express)


async def _rest(request: Request, rid: str, seen: list[int] | None, param: str, owner: ExitStack) -> Chunks:
    """What is behind these has its owner before this task ends. Raises ApiError stream_not_found if there is no such
    stream."""
    front = frontend(request)
    if not 0 < len(rid) <= MAX_ID_CHARS:
        raise ApiError("stream_not_found", "There is no stream with this id to resume.")
    admission = await front.admission()
    meta, stream = await front.engine.attach(rid, request.state.key_digest)
    owner.callback(stream.leave)
    job, renderer = await again(admission, rid, meta)
    if seen is not None:
        check_seen(seen, job, param)
    deadline = begin_deadline(front.config, job)
    owner.callback(deadline.close)
    teller = NumberedTeller(job, renderer, stream.stop, seen)
    return Chunks(stream, teller, deadline, interval_of(front.config, job))
