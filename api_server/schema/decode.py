"""Bytes, or a query string, to a request struct; every way that can fail becomes an ApiError that names the field.

This runs on the event loop. The largest body that is let in costs it some ten milliseconds, if it is one long text or a
list of token ids, 50 if it is a million short strings, and 200 if it is hundreds of thousands of names. A thread would
not help: msgspec, like all that makes Python objects, holds the interpreter's lock.
"""

import json
import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from api_server.errors import ApiError

MAX_DEPTH: Final = 32
MAX_CONTAINERS: Final = 65_536  # objects and arrays in one body; bounds the work of everything that walks it
NAMED_SIZE: Final = 64 << 10  # bytes; in a larger body, the field that holds a NaN is not looked for
_PLACE: Final = re.compile(r"\$\.(\w+)")
_MISSING: Final = re.compile(r"missing required field `(\w+)`")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_NOT_A_NUMBER: Final = object()

T = TypeVar("T")


def decode(body: bytes, kind: type[T]) -> T:
    """The body as a `kind`. Raises ApiError invalid_json for what is no JSON, and invalid_request_error with the
    top-level field as `param` for what is JSON of another shape."""
    check_text(body)
    check_depth(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        param = _not_a_number(body)
        if param is not None:
            raise ApiError(
                "invalid_request_error", f"NaN and Infinity are no numbers - at `$.{param}`", param
            ) from None
        raise ApiError("invalid_json", f"The body could not be parsed as JSON: {error}") from None


def decode_query(query: Mapping[str, str], kind: type[T]) -> T:
    """The same from a query string, whose values are all text."""
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    except ValueError as error:  # a number with too many digits
        raise ApiError("invalid_request_error", str(error)) from None


def check_text(body: bytes) -> None:
    """JSON is UTF-8 throughout, also in the fields that decoding skips."""
    try:
        body.isascii() or body.decode()
    except UnicodeDecodeError as error:
        raise ApiError("invalid_json", f"The body is not valid UTF-8: {error.reason} at byte {error.start}") from None


def check_depth(body: bytes) -> None:
    """Refuses JSON nested deeper than MAX_DEPTH, before any parser recurses into it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    # Escapes go first, then strings without a bracket in them, of which there may be a million. Of what is left, every
    # second piece between quotes lies outside a string. Then each round takes away the innermost pairs of brackets, so
    # a document is as deep as it takes rounds.
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    brackets = b"".join(bare.split(b'"')[::2]).replace(b"{", b"[").replace(b"}", b"]")
    if brackets.count(b"[") > MAX_CONTAINERS:
        raise ApiError("invalid_json", f"The body holds more than {MAX_CONTAINERS} objects and arrays")
    for _ in range(MAX_DEPTH):
        shallower = brackets.replace(b"[]", b"")
        if len(shallower) == len(brackets):
            break
        brackets = shallower
    if brackets.count(b"[") > MAX_DEPTH or b"[]" in brackets:
        raise ApiError("invalid_json", f"The body is nested deeper than {MAX_DEPTH} levels")


def _refusal(error: msgspec.ValidationError) -> ApiError:
    message = str(error)
    found = _PLACE.search(message) or _MISSING.search(message)
    return ApiError("invalid_request_error", message, found[1] if found else None)


def _not_a_number(body: bytes) -> str | None:
    """The top-level field that holds a NaN or Infinity, which Python's json writes though JSON has none."""
    if len(body) > NAMED_SIZE or not (b"NaN" in body or b"Infinity" in body):
        return None
    try:
        document = json.loads(body, parse_constant=lambda _: _NOT_A_NUMBER)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    return next((name for name, value in document.items() if _holds_constant(value)), None)


def _holds_constant(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_constant, value.values()))
    if isinstance(value, list):
        return any(map(_holds_constant, value))
    return value is _NOT_A_NUMBER
