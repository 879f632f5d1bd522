"""Whether a request's head opens a WebSocket: whole, by the letter, and on the one route that has one. What does not is
ordinary HTTP."""

import re
from base64 import b64decode
from binascii import Error
from typing import Final

SOCKET_PATH: Final = "/v1/ws"
LINE_MAX: Final = 8190  # bytes; the WebSocket library takes no longer line
_REQUEST: Final = re.compile(rb"GET %b(\?[^ ]*)? HTTP/1\.1" % re.escape(SOCKET_PATH.encode()))
_ONCE: Final = (b"upgrade", b"sec-websocket-key", b"sec-websocket-version")
_KEY_SIZE: Final = 16
_UPGRADE: Final = re.compile(rb"(?i)(?<=\r\n)upgrade(?=:)")


def is_handshake(head: bytes) -> bool:
    """RFC 6455, 4.2.1. A body would be read as frames, so there may be none."""
    request, *lines = head[:-4].split(b"\r\n")
    if _REQUEST.fullmatch(request) is None:
        return False
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return (
        all(len(fields.get(name, ())) == 1 for name in _ONCE)
        and fields[b"upgrade"][0].lower() == b"websocket"
        and any(b"upgrade" in _tokens(value) for value in fields.get(b"connection", ()))
        and fields[b"sec-websocket-version"] == [b"13"]
        and _is_key(fields[b"sec-websocket-key"][0])
        and len(fields.get(b"origin", ())) <= 1
        and not {b"content-length", b"transfer-encoding"} & fields.keys()
    )


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t").lower() for token in value.split(b",")]


def _is_key(value: bytes) -> bool:
    try:
        return len(b64decode(value, validate=True)) == _KEY_SIZE
    except Error:
        return False


def without_upgrade(head: bytes) -> bytes:
    """The head with its `Upgrade` under another name: a protocol that isn't served is ignored (RFC 9110, 7.8), and
    the body stays a body. The value is left for the parser to check."""
    return _UPGRADE.sub(b"ignored-upgrade", head)
