"""Whole-body responses that every part of the frontend uses: JSON from msgspec, and errors."""

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api_server.errors import ApiError


class JsonResponse(Response):
    """Any msgspec-encodable value."""

    media_type = "application/json"

    def __init__(self, content: object, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(msgspec.json.encode(content), status_code, headers)


class ErrorResponse(Response):
    """An ApiError as a response, in the shape of the API whose path was asked for; on a WebSocket that is not open yet
    it refuses the handshake."""

    media_type = "application/json"

    def __init__(self, error: ApiError, headers: dict[str, str] | None = None) -> None:
        super().__init__(error.body, error.status, error.headers | (headers or {}))
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        self.body = self._error.body_for(scope["path"])
        self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)
