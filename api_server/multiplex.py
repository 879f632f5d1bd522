"""Many generations on one WebSocket.

Each runs in a task of its own and ends with exactly one `done` or `error` of its id. An `error` without an id is about
a message that began no generation, or names one that goes on. Between a generation's mailbox, where tokens that nobody
has taken are merged, and the socket there is one message of each: who has one to send waits until the one before it has
gone out, and so does the reader with its answers to bad messages. So a client that does not read costs no more than
its tokens, and is not read from.

Knows nothing of what is in a body: it is given a function that admits one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

from msgspec import Raw, Struct
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api_server.errors import ApiError
from api_server.frontend import Frontend, frontend
from api_server.job import Job
from api_server.render import Renderer
from api_server.render.frame import Framing, to_json
from api_server.reply import open_chunks
from api_server.schema.decode import decode
from api_server.schema.realtime import MAX_ID_CHARS, SocketMessage
from api_server.teller import Teller

logger: Final = logging.getLogger("tokenwire.socket")

MAX_GENERATIONS: Final = 1024  # at a time on one socket
GOING_AWAY: Final = 1001  # close code
REST_S: Final = 1.0  # without a generation, before a socket is closed that another frontend can take over

Admit = Callable[[Frontend, Raw, Framing], Awaitable[tuple[Job, Renderer]]]


class _Named(Struct, frozen=True):
    """What can be read of a message that is otherwise wrong."""

    type: Any = None
    id: Any = None


class Session:
    """One open socket. `run` it once."""

    def __init__(self, websocket: WebSocket, admit: Admit) -> None:
        """`admit` makes a job of a body, and a renderer whose every chunk goes into the framing. It raises ApiError."""
        self._websocket: Final = websocket
        self._admit: Final = admit
        self._front: Final = frontend(websocket)
        self._running: Final[dict[str, asyncio.Task[None]]] = {}  # by the client's id, until the end is decided
        self._reasons: Final[dict[str, ApiError]] = {}  # why one of them was cancelled
        self._tasks: Final[set[asyncio.Task[None]]] = set()  # those that still have to tell their end, too
        self._sending: Final = asyncio.Lock()

    async def run(self) -> None:
        """Until the client leaves, which aborts what it has left, or the server does, which closes the socket."""
        reading = asyncio.create_task(self._read())
        drained = asyncio.create_task(self._drained())
        try:
            await asyncio.wait({reading, drained}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            else:
                await self._close()
        except asyncio.CancelledError:
            _uncancel()
            await self._dismiss()
            await self._close()
        finally:
            await _cancel({reading, drained, *self._tasks})

    # ------------------------------------------------------------------------------------------------ what comes

    async def _read(self) -> None:
        """Until the client leaves."""
        while await self._take(await self._websocket.receive()):
            # What was begun has its first turn before it can be cancelled, and a burst of messages holds up nobody.
            await asyncio.sleep(0)

    async def _take(self, message: Message) -> bool:
        """False if it is the client's leave."""
        if message["type"] == "websocket.disconnect":
            return False
        text: str | None = message.get("text")
        data: bytes = message["bytes"] if text is None else text.encode()
        try:
            if len(data) > (limit := self._front.config.max_body_size):
                raise ApiError("request_too_large", f"The message is larger than {limit} bytes.")
            self._obey(decode(data, SocketMessage))
        except ApiError as error:
            await self._tell(_failed(self._ended_by(data), error))
        return True

    def _obey(self, message: SocketMessage) -> None:
        if message.type == "cancel":
            if message.id not in self._running:
                raise ApiError("request_not_found", f"No generation `{message.id}` is running on this socket.", "id")
            self._end(message.id, ApiError("request_cancelled", "The request was cancelled."))
            return
        if self._front.draining:
            raise ApiError("draining", "This server is shutting down; another one will take the request.")
        if not message.body:
            raise ApiError("invalid_request_error", "A message of type `generate` needs a body.", "body")
        if message.id in self._running:
            raise ApiError("invalid_request_error", f"A generation `{message.id}` is running already.", "id")
        if len(self._tasks) >= MAX_GENERATIONS:
            raise ApiError("queue_full", f"One socket takes {MAX_GENERATIONS} generations at a time.")
        task = asyncio.create_task(self._generate(message.id, message.body))
        self._running[message.id] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _ended_by(self, data: bytes) -> str | None:
        """The id of the generation that a refused message would have begun. None if it has no id, or that of one that
        runs: the refusal is not its end."""
        try:
            message = decode(data, _Named)
        except ApiError:
            return None
        name = message.id
        possible = isinstance(name, str) and 0 < len(name) <= MAX_ID_CHARS and name not in self._running
        return name if possible and message.type != "cancel" else None

    # ------------------------------------------------------------------------------------------------ generations

    async def _generate(self, name: str, body: Raw) -> None:
        """One generation, from its body to the one message that ends it."""
        self._front.drain.enter()
        end = b""
        try:
            framing = Framing(b'{"type":"chunk","id":%b,"data":' % to_json(name), b"}\n", b"")
            job, renderer = await self._admit(self._front, body, framing)
            del body  # it may be large, and the answer long
            key: bytes = self._websocket.state.key_digest
            with ExitStack() as owned, self._front.engine.tallies.streaming():
                teller = partial(Teller, job, renderer)
                async for chunks in await open_chunks(self._front, key, job, teller, owned):
                    for chunk in chunks.splitlines():
                        await self._tell(chunk)
            end = b'{"type":"done","id":%b}' % to_json(name)
        except ApiError as error:
            end = _failed(name, error)
        except asyncio.CancelledError:
            if (reason := self._reasons.pop(name, None)) is None:
                raise  # the client has left
            _uncancel()
            end = _failed(name, reason)
        except Exception:
            logger.exception("generation %s failed", name)
            end = _failed(name, ApiError("internal_error", "The server failed to complete this generation."))
        finally:
            del self._running[name]  # before its end is told: from there on the client may use the id again
            try:
                if end:
                    await self._tell(end)
            finally:
                self._front.drain.leave()

    def _end(self, name: str, reason: ApiError) -> None:
        """Who cancels wants no more: tokens that have not been sent are dropped."""
        self._reasons[name] = reason
        self._running[name].cancel()

    # ------------------------------------------------------------------------------------------------ what goes

    async def _tell(self, message: bytes) -> None:
        """Returns when it has gone out; to a client that has left it is not sent, and the reader hears of that."""
        async with self._sending:
            if self._websocket.application_state is WebSocketState.CONNECTED:
                with suppress(WebSocketDisconnect):
                    await self._websocket.send_text(message.decode())

    # ------------------------------------------------------------------------------------------------ the server's end

    async def _drained(self) -> None:
        """Returns once this process leaves and nothing runs here any more. What comes meanwhile may still be served:
        then a moment without it is waited for, so that the close seldom crosses it."""
        await self._front.drain.begun.wait()
        while self._tasks or not self._front.draining:
            if self._tasks:
                await asyncio.wait(self._tasks)
            if not self._front.draining:
                await asyncio.sleep(REST_S)
                if not self._tasks:
                    return

    async def _dismiss(self) -> None:
        """The server waits no longer for what still runs."""
        for name in list(self._running):
            self._end(name, ApiError("draining", "The server shut down before this generation was complete."))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _close(self) -> None:
        async with self._sending:
            if self._websocket.application_state is WebSocketState.CONNECTED:
                with suppress(WebSocketDisconnect):
                    await self._websocket.close(GOING_AWAY)


def _failed(name: str | None, error: ApiError) -> bytes:
    """The error object of every route, with what it is about."""
    return b'{"type":"error","id":%b,' % to_json(name) + error.body[1:]


def _uncancel() -> None:
    """What the running task was cancelled for has been seen to."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
