"""The frontend's side of the engine: the connection, what is known of the engine, and the demux that fills mailboxes.

Knows nothing of text or HTTP.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from api_server.errors import ApiError
from api_server.stream import Stream
from api_server.submission import Submission
from api_server.tallies import Tallies
from protocol import messages as wire
from protocol.channel import ClientChannel, Link, TooLarge
from protocol.metrics import EngineMetrics

logger: Final = logging.getLogger("tokenwire.engine_client")

FRESH_S: Final = 3.0  # an engine that is silent for longer, and announced no longer lease, is not ready
TICK_S: Final = 0.5  # how often silence is looked for
BACKLOG_MAX: Final = 65_536  # aborts and stops that wait for an engine in a long step
CANCEL_WAIT_S: Final = 10.0  # for the engine to say whether there was something to cancel, or to resume
MAX_SEQUENCES: Final = 512  # of one request, as on the wire


class EngineClient:
    """The connection to one engine core, and all that is known of it. Owned by one event loop."""

    def __init__(self, endpoint: str) -> None:
        self.epoch = 0
        self.card: wire.ModelCard | None = None
        self.limits: wire.Limits | None = None
        self.load = wire.Load()
        self.tallies = Tallies()
        self.told = wire.Metrics(0, EngineMetrics())  # the last that came
        self.told_s = 0.0  # and when
        self._endpoint = endpoint
        self._frontend = secrets.token_bytes(16)
        self._channel: ClientChannel | None = None
        self._watched: tuple[int, ...] = ()
        self._ticker: asyncio.TimerHandle | None = None
        self._linked = False
        self._foreign = False  # it speaks another version, which has been logged
        self._welcome = asyncio.Event()
        self._next_handle = 0
        self._streams: dict[int, Stream] = {}  # by handle
        self._requests: dict[str, Stream] = {}  # by request id, for Accepted and Rejected
        self._attaches: dict[str, deque[tuple[asyncio.Future[tuple[bytes, Stream]], int]]] = {}  # likewise
        self._cancels: dict[str, deque[asyncio.Future[bool]]] = {}  # by request id, in the order of the answers
        self._backlog: deque[wire.Command] = deque(maxlen=BACKLOG_MAX)
        self._heard_s = time.monotonic()
        self._progress_s = time.monotonic()
        self._step = -1
        self._lease_s = 0.0

    # ------------------------------------------------------------------------------------------------ life

    async def start(self) -> None:
        """Connects, now or whenever the engine is there."""
        self._channel = ClientChannel(self._endpoint)
        self._watch()
        self._tick()

    def close(self) -> None:
        """Ends all streams and the connection."""
        if self._channel is None:
            return
        self._lose("draining", "the server is shutting down")
        self._unwatch()
        if self._ticker is not None:
            self._ticker.cancel()
        self._channel.close()
        self._channel = None

    # ------------------------------------------------------------------------------------------------ health

    @property
    def heartbeat_age_s(self) -> float:
        """Since anything came from the engine."""
        return time.monotonic() - self._heard_s

    @property
    def last_step_age_s(self) -> float:
        """Since the engine's step loop was last seen to move on."""
        return time.monotonic() - self._progress_s

    @property
    def connected(self) -> bool:
        """The engine has answered this connection, and the connection still stands."""
        return self._welcome.is_set()

    @property
    def state(self) -> str:
        """connecting (never seen yet), ready, draining, stale (silent, or without a step for work it has, beyond its
        lease), or down (lost, and expected back)."""
        if not self.connected:
            return "connecting" if self.card is None else "down"
        patience_s = max(FRESH_S, self._lease_s)
        if self.heartbeat_age_s > patience_s or self.last_step_age_s > patience_s:
            return "stale"
        return "draining" if self.load.draining else "ready"

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    async def wait_ready(self, timeout_s: float) -> None:
        """Returns once the engine takes requests. Raises ApiError if it does not within `timeout_s`."""
        if self._welcome.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._welcome.wait()
        except TimeoutError:
            if self.card is None:
                raise ApiError("engine_loading", "The model is still being loaded.") from None
            raise ApiError("engine_restarting", "The engine is being restarted.") from None

    # ------------------------------------------------------------------------------------------------ requests

    async def submit(self, submission: Submission, key: bytes = b"") -> Stream:
        """Hands a request to the engine and returns its mailbox once the engine has accepted it.

        Raises ApiError for a refusal. Being cancelled here aborts the request.
        """
        await self.wait_ready(5.0)
        size = len(submission.prompts) * submission.n
        first_handle = self._next_handle
        self._next_handle += size
        scored = submission.sampling.prompt_logprobs is not None
        prompts = [len(prompt) for prompt in submission.prompts] if scored else ()
        stream = Stream(self, submission.rid, first_handle, size, prompts, resumable=bool(submission.meta))
        for handle in range(first_handle, first_handle + size):
            self._streams[handle] = stream
        self._requests[submission.rid] = stream
        try:
            if not self._send(self._generate(submission, first_handle, key)):
                raise ApiError("engine_restarting", "The engine can't be reached.")
            await stream.accepted
        except TooLarge as error:
            stream.close()
            raise ApiError("request_too_large", "The request is larger than the engine takes.") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def _generate(self, submission: Submission, first_handle: int, key: bytes) -> wire.Generate:
        sequences = [
            wire.Sequence(first_handle + prompt * submission.n + choice, prompt, choice)
            for prompt in range(len(submission.prompts))
            for choice in range(submission.n)
        ]
        return wire.Generate(
            self.epoch,
            submission.rid,
            submission.packed,
            sequences,
            submission.sampling,
            submission.seed,
            key=key,
            salt=submission.salt,
            priority=submission.priority,
            meta=submission.meta,
        )

    async def attach(self, rid: str, key: bytes) -> tuple[bytes, Stream]:
        """What its frontend said of a resumable request, and a mailbox that gets all of its answer from the beginning.
        Whoever read it so far reads no more of it.

        Raises ApiError stream_not_found if none of this name and key is there, or not any more.
        """
        await self.wait_ready(5.0)
        first_handle = self._next_handle
        self._next_handle += MAX_SEQUENCES
        answer: asyncio.Future[tuple[bytes, Stream]] = asyncio.get_running_loop().create_future()
        if not self._send(wire.Attach(rid, first_handle, key)):
            raise ApiError("engine_restarting", "The engine can't be reached.")
        self._attaches.setdefault(rid, deque()).append((answer, first_handle))
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                return await answer
        except TimeoutError:
            raise ApiError("engine_restarting", f"The engine gave no answer within {CANCEL_WAIT_S:g} s.") from None
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result()[1].leave()
            raise

    async def cancel(self, rid: str, key: bytes) -> bool:
        """Ends a request, whichever frontend reads it. False if none of this name and key is unfinished.

        Raises ApiError if the engine is not there or gives no answer in time; a command that it has got then counts all
        the same.
        """
        await self.wait_ready(0.0)
        if not self._send(wire.Cancel(rid, key)):
            raise ApiError("engine_restarting", "The engine can't be reached.")
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._cancels.setdefault(rid, deque()).append(answer)
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                return await answer
        except TimeoutError:
            raise ApiError("engine_restarting", f"The engine gave no answer within {CANCEL_WAIT_S:g} s.") from None

    def forget(self, handles: Sequence[int]) -> None:
        """Nobody reads these any more."""
        for handle in handles:
            self._streams.pop(handle, None)

    def forget_request(self, rid: str) -> None:
        self._requests.pop(rid, None)

    def send_later(self, command: wire.Command) -> None:
        """Sends now, or as soon as the engine takes commands again. For a dead engine there is nothing to send."""
        self.load.full = False  # who leaves makes room, and the next request may come before the engine says so
        if self._welcome.is_set() and not self._send(command):
            self._backlog.append(command)

    def _send(self, command: wire.Command) -> bool:
        if self._channel is None or not self._channel.send(command):
            return False
        # ZeroMQ's descriptor is edge-triggered, and a send may swallow the edge of something that has just come in.
        asyncio.get_running_loop().call_soon(self._receive)
        return True

    # ------------------------------------------------------------------------------------------------ demux

    def _receive(self) -> None:
        if self._channel is None:
            return
        for event in self._channel.receive():
            if event is Link.UP:
                self._linked = True
                self._hello()
            elif event is Link.DOWN:
                self._reconnect()
                return
            elif isinstance(event, wire.Welcome):
                self._on_welcome(event)
            elif not isinstance(event, Link) and event.epoch == self.epoch and self._welcome.is_set():
                self._heard_s = time.monotonic()
                self._dispatch(event)

    def _dispatch(self, event: wire.Event) -> None:
        match event:
            case wire.Step():
                self._on_step(event)
            case wire.Accepted(rid=rid):
                if (stream := self._requests.pop(rid, None)) is not None and not stream.accepted.done():
                    stream.accepted.set_result(None)
            case wire.Rejected(rid=rid, code=code, message=message, param=param):
                if (stream := self._requests.pop(rid, None)) is not None:
                    stream.fail(ApiError(code, message, param))
            case wire.Failed(handles=handles, code=code, message=message):
                for handle in handles:
                    if (stream := self._streams.get(handle)) is not None:
                        stream.fail(ApiError(code, message))
            case wire.Attached() | wire.Unknown():
                self._on_attached(event)
            case wire.Taken(handles=handles):
                for handle in handles:
                    if (stream := self._streams.get(handle)) is not None:
                        stream.fail(ApiError("stream_taken", "Another connection reads this stream now."))
            case wire.Cancelled(rid=rid, found=found):
                self._on_cancelled(rid, found)
            case wire.Metrics():
                self.told, self.told_s = event, self._heard_s
            case wire.Dying(reason=reason):
                logger.error("the engine is dying: %s", reason)

    def _on_step(self, step: wire.Step) -> None:
        if step.step != self._step or not (step.load.running or step.load.waiting):
            self._step = step.step
            self._progress_s = self._heard_s
        self._lease_s = step.next_due_s
        self.load = step.load
        streams = self._streams
        for delta in step.deltas:
            if (stream := streams.get(delta.handle)) is not None:  # else it has left already
                stream.put(delta)
        while self._backlog and self._send(self._backlog[0]):
            self._backlog.popleft()

    def _on_attached(self, event: wire.Attached | wire.Unknown) -> None:
        if not (attaches := self._attaches.get(event.rid)):
            return
        answer, first_handle = attaches.popleft()
        if not attaches:
            del self._attaches[event.rid]
        if isinstance(event, wire.Unknown):
            if not answer.done():
                answer.set_exception(ApiError("stream_not_found", "There is no stream with this id to resume."))
            return
        size = event.sequences
        stream = Stream(self, event.rid, first_handle, size, event.scored, resumable=True)
        self._streams.update(dict.fromkeys(range(first_handle, first_handle + size), stream))
        if answer.done():  # nobody waits for it any more
            stream.leave()
        else:
            self.tallies.resumed_streams += 1
            answer.set_result((event.meta, stream))

    def _on_cancelled(self, rid: str, found: bool) -> None:
        if not (answers := self._cancels.get(rid)):
            return
        answer = answers.popleft()
        if not answers:
            del self._cancels[rid]
        if not answer.done():  # else nobody waits for it any more
            answer.set_result(found)

    def _on_welcome(self, welcome: wire.Welcome) -> None:
        if welcome.version != wire.PROTOCOL_VERSION:
            if not self._foreign:
                logger.error("the engine speaks protocol %d, this frontend %d", welcome.version, wire.PROTOCOL_VERSION)
            self._foreign = True
            return
        self._heard_s = self._progress_s = time.monotonic()
        if welcome.epoch == self.epoch and self._welcome.is_set():
            return
        if self._welcome.is_set():
            self._lose("engine_restarting", "The engine was restarted while it worked on this request.")
        self.epoch = welcome.epoch
        self.card = welcome.card
        self.limits = welcome.limits
        self._step = -1
        self._welcome.set()
        logger.info("engine ready: epoch %d, model %s", welcome.epoch, welcome.card.name)

    # ------------------------------------------------------------------------------------------------ the link

    def _hello(self) -> None:
        assert self._channel is not None
        self._send(wire.Hello(wire.PROTOCOL_VERSION, self._frontend, self._channel.boot))

    def _tick(self) -> None:
        """Says hello again to an engine that is silent: it may be new, or the first Hello came before it listened."""
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        if self._linked and (not self._welcome.is_set() or self.heartbeat_age_s > FRESH_S + self._lease_s):
            self._hello()
        self._receive()

    def _reconnect(self) -> None:
        """The engine's end is gone: what it worked on is lost, and the next one is met under a new identity."""
        assert self._channel is not None
        self._linked = self._foreign = False
        self._lose("engine_restarting", "The engine was lost while it worked on this request.")
        self._unwatch()
        self._channel.reopen()
        self._watch()

    def _lose(self, code: str, message: str) -> None:
        self._welcome.clear()
        self._backlog.clear()
        self.load = wire.Load()
        for stream in {*self._streams.values(), *self._requests.values()}:
            stream.fail(ApiError(code, message))
        self._requests.clear()
        cancels = [answer for answers in self._cancels.values() for answer in answers]
        attaches = [answer for answers in self._attaches.values() for answer, _ in answers]
        waiting: list[asyncio.Future[Any]] = [*cancels, *attaches]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(ApiError(code, message))
        self._cancels.clear()
        self._attaches.clear()

    def _watch(self) -> None:
        assert self._channel is not None
        loop = asyncio.get_running_loop()
        self._watched = self._channel.filenos()
        for descriptor in self._watched:
            loop.add_reader(descriptor, self._receive)
        loop.call_soon(self._receive)

    def _unwatch(self) -> None:
        loop = asyncio.get_running_loop()
        for descriptor in self._watched:
            loop.remove_reader(descriptor)
        self._watched = ()
