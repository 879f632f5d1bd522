"""POST /v1/responses: a response is made, told and forgotten. Nothing is stored."""

import time

from starlette.requests import Request
from starlette.types import ASGIApp

from api_server.admission import RESPONSES
from api_server.body import read_body
from api_server.dialects import named, unsupported
from api_server.dialects.responses import PARAMS, chat_request
from api_server.encode import off_loop
from api_server.form import accepted_form
from api_server.frontend import frontend
from api_server.render.responses import ResponsesRenderer
from api_server.reply import reply
from api_server.schema.decode import decode
from api_server.schema.responses_api import ResponsesRequest


async def create_response(request: Request) -> ASGIApp:
    """OpenAI's Responses, without a store: a conversation is sent whole each time, and nothing can be retrieved. Tools
    are functions; those that OpenAI runs itself are refused."""
    data = await read_body(request)
    body = decode(data, ResponsesRequest)
    admission = await frontend(request).admission()
    with named(PARAMS):
        chat = await off_loop(len(data), lambda: chat_request(body))
        job = await admission.chat(chat, RESPONSES)
        if job.reader is not None and chat.logprobs:
            raise unsupported("Log probabilities can't be told apart from those of calls and reasoning.", "include")
        form = accepted_form(request)
        renderer = ResponsesRenderer(job, body, time.time, form.framing)
        return await reply(request, job, renderer, form._replace(error=renderer.failure))
