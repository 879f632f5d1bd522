"""/v1/completions/stream: POST for programs, GET for a browser's EventSource."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.plain import StreamRenderer
from api_server.reply import reply
from api_server.schema.decode import decode, decode_query
from api_server.schema.requests import PlainRequest


async def completions_stream(request: Request) -> ASGIApp:
    """Generates from one prompt, as text alone. It streams unless the body says otherwise."""
    body = decode(await read_body(request), PlainRequest)
    job = await (await frontend(request).admission()).stream(body)
    form = accepted_form(request)
    return await reply(request, job, StreamRenderer(job, framing=form.framing), form)


async def completions_events(request: Request) -> ASGIApp:
    """Streams a completion to a browser's EventSource. It generates once: an EventSource reconnects by itself after
    every end, and says then what it saw last. It must not get a second answer, so it is told (204) to stop asking."""
    if "last-event-id" in request.headers:
        return Response(status_code=204)
    body = decode_query(request.query_params, PlainRequest)
    job = await (await frontend(request).admission()).stream(body)
    return await reply(request, job, StreamRenderer(job, resumable=True))
