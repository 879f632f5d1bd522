"""POST /generate."""

import time

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.plain import GenerateRenderer
from api_server.reply import reply
from api_server.schema.decode import decode
from api_server.schema.requests import PlainRequest


async def generate(request: Request) -> ASGIApp:
    """Generates from one prompt. A stream has one event per token, with the token's id and its time."""
    body = decode(await read_body(request), PlainRequest)
    job = await (await frontend(request).admission()).generate(body)
    form = accepted_form(request)
    return await reply(request, job, GenerateRenderer(job, time.perf_counter, form.framing), form)
