"""POST /generate."""

import time

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.plain import GenerateRenderer
from api_server.resume import GENERATE, Recipe, reply_resumable
from api_server.schema.decode import decode
from api_server.schema.requests import PlainRequest


async def generate(request: Request) -> ASGIApp:
    """Generates from one prompt. A stream has one event per token, with the token's id and its time."""
    body = await read_body(request)
    job = await (await frontend(request).admission()).generate(decode(body, PlainRequest))
    form = accepted_form(request)
    renderer = GenerateRenderer(job, time.perf_counter, form.framing)
    return await reply_resumable(request, job, renderer, Recipe(GENERATE, body), form)
