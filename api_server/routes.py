"""The one table of routes: what is served where, and what the document tells of it."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.routing import Route, WebSocketRoute

from api_server.endpoints import (
    cancel,
    chat,
    completions,
    docs,
    generate,
    models,
    ops,
    realtime,
    resume,
    streams,
    tokenize,
)
from api_server.endpoints.messages import count_tokens, create_message
from api_server.endpoints.responses import create_response
from api_server.errors import AnthropicErrorEnvelope
from api_server.form import EVENTS_TYPE
from api_server.handshake import SOCKET_PATH
from api_server.operation import (
    OF_ADMISSION,
    OF_GENERATION,
    OF_THE_ENGINE,
    Answer,
    Operation,
    Parameter,
)
from api_server.schema import anthropic, chunks, requests, responses, responses_api, responses_events
from api_server.schema.health import Alive, Health, Versions

GET: Final = ("GET", "HEAD")
POST: Final = ("POST",)

Handler = Callable[[Request], Awaitable[Any]]


class Endpoint(NamedTuple):
    """`name` is the operation's id in the document; without an operation the endpoint is not in it."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    name: str
    operation: Operation | None = None


READINESS: Final = Operation(
    tag="Health",
    gives=Health,
    answers=(Answer(503, "Not now: `status` says why.", Health),),
    parameters=(Parameter("deep", "query", "With `1`, generate one token through the real queue."),),
)
HELLO: Final = [{"role": "user", "content": "Tell me a story about a fox."}]
ONCE: Final = "Once upon a time"
HEALTH: Final = (
    Endpoint("/livez", GET, ops.livez, "livez", Operation(tag="Health", gives=Alive)),
    Endpoint("/readyz", GET, ops.readyz, "readyz", READINESS),
    Endpoint("/health", GET, ops.readyz, "health", READINESS),
    Endpoint("/ping", GET, ops.readyz, "ping", READINESS),
    Endpoint(
        "/startupz",
        GET,
        ops.startupz,
        "startupz",
        Operation(tag="Health", gives=Health, answers=(Answer(503, "The model is not loaded yet.", Health),)),
    ),
    Endpoint("/version", GET, ops.version, "version", Operation(tag="Health", gives=Versions)),
    Endpoint("/metrics", GET, ops.metrics, "metrics", Operation(tag="Health", gives=str, gives_as="text/plain")),
)
API: Final = (
    Endpoint(
        "/v1/chat/completions",
        POST,
        chat.chat_completions,
        "chat_completions",
        Operation(
            tag="Generation",
            takes=requests.ChatRequest,
            gives=responses.ChatCompletion,
            streams=chunks.ChatChunk,
            errors=OF_GENERATION,
            example={"messages": HELLO, "max_tokens": 64},
        ),
    ),
    Endpoint(
        "/v1/completions",
        POST,
        completions.completions,
        "completions",
        Operation(
            tag="Generation",
            takes=requests.CompletionRequest,
            gives=responses.Completion,
            streams=chunks.CompletionChunk,
            errors=OF_GENERATION,
            example={"prompt": ONCE, "max_tokens": 32},
        ),
    ),
    Endpoint(
        "/v1/responses",
        POST,
        create_response,
        "create_response",
        Operation(
            tag="Generation",
            takes=responses_api.ResponsesRequest,
            gives=responses_api.ResponseObject,
            streams=responses_events.ResponseEvent,
            stream_error=None,
            errors=OF_GENERATION,
            example={"input": HELLO[0]["content"], "max_output_tokens": 64},
        ),
    ),
    Endpoint(
        "/v1/messages",
        POST,
        create_message,
        "create_message",
        Operation(
            tag="Generation",
            takes=anthropic.MessagesRequest,
            gives=anthropic.MessageObject,
            streams=anthropic.MessageEvent,
            stream_error=None,
            errors=OF_GENERATION,
            error_body=AnthropicErrorEnvelope,
            example={"messages": HELLO, "max_tokens": 64},
        ),
    ),
    Endpoint(
        "/v1/messages/count_tokens",
        POST,
        count_tokens,
        "count_tokens",
        Operation(
            tag="Tokens",
            takes=anthropic.CountRequest,
            gives=anthropic.TokenCount,
            errors=OF_ADMISSION,
            error_body=AnthropicErrorEnvelope,
            example={"messages": HELLO},
        ),
    ),
    Endpoint(
        "/v1/completions/stream",
        POST,
        streams.completions_stream,
        "completions_stream",
        Operation(
            tag="Generation",
            takes=requests.PlainRequest,
            gives=responses.Streamed,
            streams=chunks.StreamedText,
            errors=OF_GENERATION,
            example={"prompt": ONCE, "max_tokens": 32},
        ),
    ),
    Endpoint(
        "/v1/completions/stream",
        ("GET",),
        streams.completions_events,
        "completions_events",
        Operation(
            tag="Generation",
            query=requests.PlainRequest,
            parameters=(Parameter("Last-Event-ID", "header", "What a browser that reconnects has seen last."),),
            gives=responses.Streamed,
            streams=chunks.StreamedText,
            streams_as=(EVENTS_TYPE,),
            answers=(Answer(204, "There is nothing more: a browser stops reconnecting."),),
            errors=OF_GENERATION,
            example={"prompt": ONCE, "max_tokens": 32},
        ),
    ),
    Endpoint(
        "/generate",
        POST,
        generate.generate,
        "generate",
        Operation(
            tag="Generation",
            takes=requests.PlainRequest,
            gives=responses.Generated,
            streams=chunks.GeneratedToken,
            errors=OF_GENERATION,
            example={"prompt": ONCE, "max_tokens": 32},
        ),
    ),
    Endpoint(
        "/v1/streams/{id}",
        ("GET",),
        resume.resume_stream,
        "resume_stream",
        Operation(
            tag="Generation",
            parameters=(
                Parameter("id", "path", "The `id` of the stream's chunks: its X-Stream-Id."),
                Parameter("Last-Event-ID", "header", "The id of the last event that was seen."),
                Parameter("after", "query", "The same, where headers can't be set; the numbers alone will do."),
            ),
            streams=(chunks.ChatChunk, chunks.CompletionChunk, chunks.GeneratedToken, chunks.StreamedText),
            streams_as=(EVENTS_TYPE,),
            errors=OF_THE_ENGINE | {"invalid_request_error", "stream_not_found", "stream_taken"},
        ),
    ),
    Endpoint(
        "/v1/requests/{id}/cancel",
        POST,
        cancel.cancel_request,
        "cancel_request",
        Operation(
            tag="Generation",
            parameters=(Parameter("id", "path", "The `id` of the request's answer: its X-Stream-Id."),),
            gives=responses.CancelledRequest,
            errors=frozenset({"request_not_found", "engine_restarting"}),
        ),
    ),
    Endpoint(
        SOCKET_PATH,
        ("GET",),
        realtime.upgrade_required,
        "upgrade_required",
        Operation(
            tag="Generation",
            answers=(Answer(101, "The WebSocket is open."),),
            errors=frozenset({"upgrade_required", "origin_not_allowed"}),
        ),
    ),
    Endpoint(
        "/v1/models",
        GET,
        models.list_models,
        "list_models",
        Operation(tag="Models", gives=responses.ModelList, errors=OF_THE_ENGINE),
    ),
    Endpoint(
        "/v1/models/{id:path}",
        GET,
        models.retrieve_model,
        "retrieve_model",
        Operation(
            tag="Models",
            parameters=(Parameter("id", "path", "The model's name, which may have slashes in it."),),
            gives=responses.ModelObject,
            errors=OF_THE_ENGINE | {"model_not_found"},
        ),
    ),
    Endpoint(
        "/tokenize",
        POST,
        tokenize.tokenize,
        "tokenize",
        Operation(
            tag="Tokens",
            takes=requests.TokenizeRequest,
            gives=responses.Tokenized,
            errors=OF_ADMISSION,
            example={"prompt": ONCE, "return_token_strs": True},
        ),
    ),
    Endpoint(
        "/detokenize",
        POST,
        tokenize.detokenize,
        "detokenize",
        Operation(
            tag="Tokens",
            takes=requests.DetokenizeRequest,
            gives=responses.Detokenized,
            errors=OF_ADMISSION,
            example={"tokens": [1, 2, 3]},
        ),
    ),
)
# What is not HTTP; the document knows nothing of it.
SOCKETS: Final = (WebSocketRoute(SOCKET_PATH, realtime.realtime, name="realtime"),)
# Pages and what they load, for people: not in the document.
PAGES: Final = (
    Endpoint("/openapi.json", GET, docs.openapi, "openapi"),
    Endpoint("/docs", GET, docs.page, "docs"),
    Endpoint("/docs/{file}", GET, docs.page, "docs_file"),
)


def make_routes(endpoints: Iterable[Endpoint]) -> list[Route]:
    """One route per path, so that a 405 names every method that the path has."""
    paths: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, []).append(endpoint)
    return [_route(path, found) for path, found in paths.items()]


def _route(path: str, endpoints: list[Endpoint]) -> Route:
    """Starlette adds HEAD to every GET, but it must not start a generation: only the table's methods are served."""
    handlers = {method: endpoint.handler for endpoint in endpoints for method in endpoint.methods}

    async def handle(request: Request) -> Any:
        return await handlers[request.method](request)

    route = Route(path, handle, name=endpoints[0].name)
    route.methods = set(handlers)
    return route
