"""The request body: how large, how slow and of what kind it may be. Knows nothing of what is in it."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from api_server.errors import ApiError
from api_server.frontend import frontend


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ApiError: 413 too large, 415 not plain JSON, 408 too slow, 499 the client left."""
    config = frontend(request).config
    max_size, timeout_s = config.max_body_size, config.body_timeout_s
    _check_headers(request, max_size)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_size:
                    raise _too_large(max_size)
    except TimeoutError:
        raise ApiError("request_timeout", f"The request body did not arrive within {timeout_s:g} s.") from None
    except ClientDisconnect:
        raise ApiError("request_cancelled", "The client went away before its request was complete.") from None
    return bytes(body)


def _check_headers(request: Request, max_size: int) -> None:
    """What can be refused before a byte of the body is asked for."""
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("", "application/json") and not media_type.endswith("+json"):
        raise ApiError("unsupported_media_type", f"Content-Type is {media_type}, expected application/json.")
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError("unsupported_media_type", "Compressed request bodies are not supported.")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_size:
        raise _too_large(max_size)


def _too_large(max_size: int) -> ApiError:
    return ApiError("request_too_large", f"The request body is larger than {max_size} bytes.")
