"""Clients of WS /v1/ws: one that knows the protocol, and frames for one that does not care for it."""

import json
import os
import struct
from contextlib import ExitStack
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

from tests.api_server.live import DEADLINE_S, BareClient

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
HANDSHAKE = (
    "GET /v1/ws{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}\r\n"
)


class SocketClient:
    """Speaks JSON."""

    def __init__(self, port: int, query: str = "", **options: Any) -> None:
        url = f"ws://127.0.0.1:{port}/v1/ws{query}"
        options = {"compression": None, "max_size": None, "open_timeout": DEADLINE_S, **options}
        self._closing = ExitStack()
        self.connection: ClientConnection = self._closing.enter_context(connect(url, **options))

    def say(self, message: Any) -> None:
        self.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def generate(self, name: str, **body: Any) -> None:
        self.say({"type": "generate", "id": name, "body": body})

    def cancel(self, name: str) -> None:
        self.say({"type": "cancel", "id": name})

    def hear(self) -> dict[str, Any]:
        """The next message."""
        text = self.connection.recv(DEADLINE_S)
        assert isinstance(text, str)
        message: dict[str, Any] = json.loads(text)
        return message

    def until_end(self, *names: str) -> dict[str, list[dict[str, Any]]]:
        """Everything until each of these has ended, by id, and nothing of others."""
        heard: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        running = set(names)
        while running:
            message = self.hear()
            heard[message["id"]].append(message)
            if message["type"] != "chunk":
                running.remove(message["id"])
        return heard

    def closed(self) -> int:
        """The code of the close that comes next, whatever comes before it."""
        for _ in self.connection:
            pass
        assert self.connection.close_code is not None
        return self.connection.close_code

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def chunks(messages: list[dict[str, Any]]) -> list[Any]:
    """The chunk objects of one generation that is done."""
    *some, last = messages
    assert last == {"type": "done", "id": last["id"]}
    assert all(set(message) == {"type", "id", "data"} for message in some)
    return [message["data"] for message in some]


def frame(payload: bytes, kind: int = TEXT, *, fin: bool = True) -> bytes:
    """As clients send it: masked."""
    mask = os.urandom(4)
    size = len(payload)
    if size < 126:
        length = struct.pack("!B", size | 0x80)
    elif size < 1 << 16:
        length = struct.pack("!BH", 126 | 0x80, size)
    else:
        length = struct.pack("!BQ", 127 | 0x80, size)
    key = int.from_bytes(mask * (size // 4) + mask[: size % 4])
    masked = (int.from_bytes(payload) ^ key).to_bytes(size)
    return struct.pack("!B", (0x80 if fin else 0) | kind) + length + mask + masked


def handshake(query: str = "", headers: str = "") -> bytes:
    return HANDSHAKE.format(query=query, headers=headers).encode()


def opened(port: int, receive_buffer: int | None = None) -> BareClient:
    """A bare socket behind its handshake."""
    client = BareClient(port, receive_buffer)
    client.send(handshake())
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    return client


def unmasked(client: BareClient) -> tuple[int, bytes]:
    """The next frame of the server: opcode and payload."""
    first, second = client.exactly(2)
    size = second
    if second == 126:
        (size,) = struct.unpack("!H", client.exactly(2))
    elif second == 127:
        (size,) = struct.unpack("!Q", client.exactly(8))
    return first & 0x0F, client.exactly(size)
