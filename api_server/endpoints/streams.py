"""/v1/completions/stream: POST for programs, GET for a browser's EventSource."""

from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.endpoints.resume import HEADER, resume_events
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.plain import StreamRenderer
from api_server.resume import STREAM, Recipe, reply_resumable
from api_server.schema.decode import decode, decode_query
from api_server.schema.requests import PlainRequest


async def completions_stream(request: Request) -> ASGIApp:
    """Generates from one prompt, as text alone. It streams unless the body says otherwise."""
    body = await read_body(request)
    job = await (await frontend(request).admission()).stream(decode(body, PlainRequest))
    form = accepted_form(request)
    renderer = StreamRenderer(job, resumable=job.resumable, framing=form.framing)
    return await reply_resumable(request, job, renderer, Recipe(STREAM, body), form)


async def completions_events(request: Request) -> ASGIApp:
    """Streams a completion to a browser's EventSource. It generates once: an EventSource reconnects by itself after
    every end, and says then what it saw last. It gets the rest of that answer, or is told (204) to stop asking."""
    if (last := request.headers.get(HEADER)) is not None:
        return await resume_events(request, last)
    asked = decode_query(request.query_params, PlainRequest)
    job = replace(await (await frontend(request).admission()).stream(asked), resumable=True)
    recipe = Recipe(STREAM, msgspec.json.encode(asked))
    return await reply_resumable(request, job, StreamRenderer(job, resumable=True), recipe, announces=True)
