"""Every way a request can fail, and the one table that turns it into a status and an error body: OpenAI's, or on the
paths of Anthropic's API its own."""

from typing import Final

import msgspec

# code → (status, type). A code that is not here is a bug of ours: 500.
TABLE: Final[dict[str, tuple[int, str]]] = {
    "invalid_request_error": (400, "invalid_request_error"),
    "invalid_json": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "unsupported_parameter": (400, "invalid_request_error"),
    "invalid_api_key": (401, "invalid_request_error"),
    "origin_not_allowed": (403, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "stream_not_found": (404, "invalid_request_error"),
    "request_not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "stream_taken": (409, "invalid_request_error"),
    "request_timeout": (408, "timeout_error"),
    "request_too_large": (413, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "request_quarantined": (422, "invalid_request_error"),
    "upgrade_required": (426, "invalid_request_error"),
    "queue_full": (429, "rate_limit_error"),
    "headers_too_large": (431, "invalid_request_error"),
    "request_cancelled": (499, "invalid_request_error"),
    "internal_error": (500, "server_error"),
    "engine_restarting": (503, "server_error"),
    "engine_loading": (503, "server_error"),
    "draining": (503, "server_error"),
    "engine_crash": (503, "server_error"),
}
# What Anthropic's clients know each status as.
ANTHROPIC_TYPES: Final[dict[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
}
ANTHROPIC_OVERLOADED: Final = "overloaded_error"  # of a 503 that it makes sense to try again after
ANTHROPIC_PATH: Final = "/v1/messages"
RETRY_AFTER_S: Final[dict[str, int]] = {"queue_full": 1, "engine_restarting": 2, "engine_loading": 2, "draining": 5}


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    error: ErrorBody


class AnthropicErrorBody(msgspec.Struct, frozen=True):
    type: str
    message: str


class AnthropicErrorEnvelope(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    error: AnthropicErrorBody


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
    def details(self) -> ErrorBody:
        """OpenAI's error object."""
        return ErrorBody(self.message, TABLE[self.code][1], self.param, self.code)

    @property
    def body(self) -> bytes:
        """JSON, the same in a response and in a stream's error event."""
        return msgspec.json.encode(ErrorEnvelope(self.details))

    @property
    def anthropic_body(self) -> bytes:
        """JSON in Anthropic's shape, which has no place for the field at fault but the message."""
        told = self.message if self.param is None or self.param in self.message else f"{self.param}: {self.message}"
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        if self.status == 503 and self.code in RETRY_AFTER_S:
            kind = ANTHROPIC_OVERLOADED
        return msgspec.json.encode(AnthropicErrorEnvelope(AnthropicErrorBody(kind, told)))

    def body_for(self, path: str) -> bytes:
        """In the shape of the API that the path belongs to."""
        anthropic = path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")
        return self.anthropic_body if anthropic else self.body
