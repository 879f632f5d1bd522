"""Every way a request can fail, and the one table that turns it into a status and OpenAI's error body."""

from typing import Final

import msgspec

# code → (status, type). A code that is not here is a bug of ours: 500.
TABLE: Final[dict[str, tuple[int, str]]] = {
    "invalid_request_error": (400, "invalid_request_error"),
    "invalid_json": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "unsupported_parameter": (400, "invalid_request_error"),
    "invalid_api_key": (401, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "stream_not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "request_timeout": (408, "timeout_error"),
    "request_too_large": (413, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "request_quarantined": (422, "invalid_request_error"),
    "queue_full": (429, "rate_limit_error"),
    "headers_too_large": (431, "invalid_request_error"),
    "request_cancelled": (499, "invalid_request_error"),
    "internal_error": (500, "server_error"),
    "engine_restarting": (503, "server_error"),
    "engine_loading": (503, "server_error"),
    "draining": (503, "server_error"),
    "engine_crash": (503, "server_error"),
}
RETRY_AFTER_S: Final[dict[str, int]] = {"queue_full": 1, "engine_restarting": 2, "engine_loading": 2, "draining": 5}


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    error: ErrorBody


class ApiError(Exception):
    """A request's failure, told to its client: as a response, or inside a stream that has begun."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code if code in TABLE else "internal_error"
        self.message = message
        self.param = param

    @property
    def status(self) -> int:
        return TABLE[self.code][0]

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After where trying again makes sense."""
        seconds = RETRY_AFTER_S.get(self.code)
        return {} if seconds is None else {"Retry-After": str(seconds)}

    @property
    def body(self) -> bytes:
        """JSON, the same in a response and in a stream's error event."""
        kind = TABLE[self.code][1]
        return msgspec.json.encode(ErrorEnvelope(ErrorBody(self.message, kind, self.param, self.code)))
