"""The Starlette application: routes, layers around them, and the OpenAI error body for whatever goes wrong."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request

from api_server.auth import Auth
from api_server.config import Config
from api_server.cors import Cors
from api_server.drain import DrainGate
from api_server.engine_client import EngineClient
from api_server.envelope import Envelope
from api_server.errors import ApiError
from api_server.frontend import Frontend
from api_server.openapi import Document
from api_server.respond import ErrorResponse
from api_server.routes import API, HEALTH, PAGES, SOCKETS, Endpoint, make_routes


def create_app(config: Config, endpoints: Sequence[Endpoint] = HEALTH + API + PAGES) -> Starlette:
    """The app of one process; `app.state.frontend` is its Frontend. Connects to the engine when it is started."""
    templates = {endpoint.path for endpoint in (HEALTH if config.health_only else endpoints)}
    frontend = Frontend(config, EngineClient(config.engine), templates)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await frontend.start()
        try:
            yield
        finally:
            await frontend.close()

    app = Starlette(
        routes=make_routes(HEALTH) if config.health_only else [*make_routes(endpoints), *SOCKETS],
        middleware=_layers(frontend),
        exception_handlers={ApiError: _api_error, HTTPException: _http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.frontend = frontend
    app.state.document = Document(endpoints, keys=bool(config.api_keys), metrics_key=config.metrics_key is not None)
    return app


def _layers(frontend: Frontend) -> list[Middleware]:
    """From the outside in. All of them pure ASGI: starlette's BaseHTTPMiddleware hides disconnects."""
    config = frontend.config
    return [
        Middleware(Envelope, cors=Cors(config.cors_origins), answers=frontend.answers),
        Middleware(Auth, api_keys=config.api_keys, metrics_key=config.metrics_key),
        Middleware(DrainGate, drain=frontend.drain),
    ]


async def _api_error(request: Request, error: Exception) -> ErrorResponse:
    assert isinstance(error, ApiError)
    return ErrorResponse(error)


async def _http_exception(request: Request, error: Exception) -> ErrorResponse:
    """Starlette's own: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request_error")
    told = ApiError(code, f"{error.detail}: {request.method} {request.url.path}")
    return ErrorResponse(told, headers=dict(error.headers or {}))
