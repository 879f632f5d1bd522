"""The one table of routes: what is served where."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.routing import Route

from api_server.endpoints import chat, completions, generate, models, ops, streams, tokenize

GET: Final = ("GET", "HEAD")
POST: Final = ("POST",)

Handler = Callable[[Request], Awaitable[Any]]


class Endpoint(NamedTuple):
    path: str
    methods: tuple[str, ...]
    handler: Handler
    name: str


HEALTH: Final = (
    Endpoint("/livez", GET, ops.livez, "livez"),
    Endpoint("/readyz", GET, ops.readyz, "readyz"),
    Endpoint("/health", GET, ops.readyz, "health"),
    Endpoint("/ping", GET, ops.readyz, "ping"),
    Endpoint("/startupz", GET, ops.startupz, "startupz"),
    Endpoint("/version", GET, ops.version, "version"),
    Endpoint("/metrics", GET, ops.metrics, "metrics"),
)
API: Final = (
    Endpoint("/v1/chat/completions", POST, chat.chat_completions, "chat_completions"),
    Endpoint("/v1/completions", POST, completions.completions, "completions"),
    Endpoint("/v1/completions/stream", POST, streams.completions_stream, "completions_stream"),
    Endpoint("/v1/completions/stream", ("GET",), streams.completions_events, "completions_events"),
    Endpoint("/generate", POST, generate.generate, "generate"),
    Endpoint("/v1/models", GET, models.list_models, "list_models"),
    Endpoint("/v1/models/{id:path}", GET, models.retrieve_model, "retrieve_model"),
    Endpoint("/tokenize", POST, tokenize.tokenize, "tokenize"),
    Endpoint("/detokenize", POST, tokenize.detokenize, "detokenize"),
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
