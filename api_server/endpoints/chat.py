"""POST /v1/chat/completions."""

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.body import read_body
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.chat import ChatRenderer
from api_server.resume import CHAT, Recipe, reply_resumable
from api_server.schema.decode import decode
from api_server.schema.requests import ChatRequest


async def chat_completions(request: Request) -> ASGIApp:
    """OpenAI's chat completions, with vLLM's extensions."""
    body = await read_body(request)
    job = await (await frontend(request).admission()).chat(decode(body, ChatRequest))
    form = accepted_form(request)
    return await reply_resumable(request, job, ChatRenderer(job, form.framing), Recipe(CHAT, body), form)
