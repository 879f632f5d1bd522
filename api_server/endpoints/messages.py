"""Anthropic's POST /v1/messages and /v1/messages/count_tokens."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from api_server.admission import MESSAGES
from api_server.body import read_body
from api_server.dialects import named
from api_server.dialects.messages import PARAMS, chat_request
from api_server.encode import off_loop
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.messages import MessagesRenderer
from api_server.reply import reply
from api_server.respond import JsonResponse
from api_server.schema.anthropic import CountRequest, MessagesRequest, TokenCount
from api_server.schema.decode import decode


async def create_message(request: Request) -> ASGIApp:
    """Anthropic's Messages. Tools are the client's own; those that Anthropic runs itself are refused, and so is all
    content but text."""
    data = await read_body(request)
    body = decode(data, MessagesRequest)
    admission = await frontend(request).admission()
    with named(PARAMS):
        chat = await off_loop(len(data), lambda: chat_request(body))
        job = await admission.chat(chat, MESSAGES)
        form = accepted_form(request)
        renderer = MessagesRenderer(job, form.framing)
        return await reply(request, job, renderer, form._replace(error=renderer.failure))


async def count_tokens(request: Request) -> Response:
    """How long the prompt of the same message would be, in tokens; it may be longer than the context."""
    data = await read_body(request)
    body = decode(data, CountRequest)
    admission = await frontend(request).admission()
    with named(PARAMS):
        chat = await off_loop(len(data), lambda: chat_request(body))
        prompt = await admission.prompt_of(chat)
    return JsonResponse(TokenCount(len(prompt)))
