"""POST /v1/completions."""

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.completion import CompletionRenderer
from api_server.resume import COMPLETION, Recipe, reply_resumable
from api_server.schema.decode import decode
from api_server.schema.requests import CompletionRequest


async def completions(request: Request) -> ASGIApp:
    """OpenAI's completions, with vLLM's extensions."""
    body = await read_body(request)
    job = await (await frontend(request).admission()).completion(decode(body, CompletionRequest))
    form = accepted_form(request)
    return await reply_resumable(request, job, CompletionRenderer(job, form.framing), Recipe(COMPLETION, body), form)
