"""POST /v1/chat/completions."""

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.chat import ChatRenderer
from api_server.reply import reply
from api_server.schema.decode import decode
from api_server.schema.requests import ChatRequest


async def chat_completions(request: Request) -> ASGIApp:
    """OpenAI's chat completions, with vLLM's extensions."""
    body = decode(await read_body(request), ChatRequest)
    job = await (await frontend(request).admission()).chat(body)
    form = accepted_form(request)
    return await reply(request, job, ChatRenderer(job, form.framing), form)
