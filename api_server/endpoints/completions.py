"""POST /v1/completions."""

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.completion import CompletionRenderer
from api_server.reply import reply
from api_server.schema.decode import decode
from api_server.schema.requests import CompletionRequest


async def completions(request: Request) -> ASGIApp:
    """OpenAI's completions, with vLLM's extensions."""
    body = decode(await read_body(request), CompletionRequest)
    job = await (await frontend(request).admission()).completion(body)
    form = accepted_form(request)
    return await reply(request, job, CompletionRenderer(job, form.framing), form)
