"""POST /v1/requests/{id}/cancel: ends a request from outside, whichever worker serves it."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from api_server.errors import ApiError
from api_server.frontend import frontend
from api_server.respond import JsonResponse
from api_server.schema.responses import CancelledRequest

MAX_ID_CHARS: Final = 128  # as on the wire; those that are made here are shorter


async def cancel_request(request: Request) -> Response:
    """Ends a request from outside. One that is unknown, has ended or belongs to another key is the same 404: its id is
    nobody else's business. A body means nothing and is not read."""
    rid: str = request.path_params["id"]
    key: bytes = request.state.key_digest
    if len(rid) > MAX_ID_CHARS or not await frontend(request).engine.cancel(rid, key):
        raise ApiError("request_not_found", "There is no unfinished request with this id.", "id")
    return JsonResponse(CancelledRequest(rid))
