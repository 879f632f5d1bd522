"""GET /openapi.json, and /docs: the page that shows it, with all that the page loads."""

from starlette.requests import Request
from starlette.responses import Response

from api_server import assets
from api_server.errors import ApiError


async def openapi(request: Request) -> Response:
    """The document of the endpoints that are served here."""
    return await assets.answer(request, lambda: request.app.state.document.asset)


async def page(request: Request) -> Response:
    """The page, or one of its files."""
    path: str = request.scope["path"]
    if path not in assets.FILES:
        raise ApiError("not_found", f"Not Found: {request.method} {path}")
    return await assets.answer(request, lambda: assets.load(path))
