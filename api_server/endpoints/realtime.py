"""WS /v1/ws: chat and completions, many at a time."""

from msgspec import Raw
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from api_server.errors import ApiError
from api_server.frontend import Frontend
from api_server.job import Job
from api_server.multiplex import Session
from api_server.render import Renderer
from api_server.render.chat import ChatRenderer
from api_server.render.completion import CompletionRenderer
from api_server.render.frame import Framing
from api_server.respond import ErrorResponse
from api_server.schema.decode import decode
from api_server.schema.realtime import ABSENT, GenerationKind
from api_server.schema.requests import ChatRequest, CompletionRequest


async def realtime(websocket: WebSocket) -> None:
    await websocket.accept()
    await Session(websocket, admit).run()


async def upgrade_required(request: Request) -> Response:
    """A WebSocket. Many generations at a time, and each of them streams: `schema/realtime.py` tells what is said."""
    error = ApiError("upgrade_required", "This route is a WebSocket: open it with ws:// or wss://.")
    return ErrorResponse(error, {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"})


async def admit(front: Frontend, body: Raw, framing: Framing) -> tuple[Job, Renderer]:
    """The job of a body of /v1/chat/completions, or of /v1/completions. Whatever it says, it streams."""
    data = bytes(body)
    kind = decode(data, GenerationKind)
    if kind.messages not in ABSENT:
        chat = replace(decode(data, ChatRequest), stream=True)
        job = await (await front.admission()).chat(chat)
        return _checked(job), ChatRenderer(job, framing)
    if kind.prompt in ABSENT:
        raise ApiError("invalid_request_error", "The body has neither `messages` nor `prompt`.", "messages")
    completion = replace(decode(data, CompletionRequest), stream=True)
    job = await (await front.admission()).completion(completion)
    return _checked(job), CompletionRenderer(job, framing)


def _checked(job: Job) -> Job:
    if job.resumable:
        raise ApiError("unsupported_parameter", "Only server-sent events can be resumed.", "stream_options")
    return job
