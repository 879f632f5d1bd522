"""The step loop: commands in, a batch to the device, tokens out, over and over.

The loop never waits while there is something to compute, and knows neither what a token means nor who reads it.
`overlap` is how many steps may be on the device while an earlier one is read and published; with 0 a step is settled
before the next is launched, and with more a request still has one step in flight at most.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from engine_core.batch import Batch
from engine_core.delivery import HEARTBEAT_S, RETRY_S, Delivery
from engine_core.grammar.grammars import Grammars
from engine_core.request import Request, highest
from engine_core.scheduler import Sampled, Scheduler
from engine_core.shelf import Shelf
from engine_core.stats import Stats
from protocol import messages as wire
from protocol.channel import EngineChannel
from protocol.tokens import unpack
from protocol.validate import InvalidRequest, check

METRICS_S: Final = 0.5  # how often the frontends get the metrics
LONG_STEP_S: Final = 0.5  # a step that should take longer is announced before it starts
LEASE_S: Final = 3.0  # within which the next Step comes, if nothing longer was announced
LEASE_FACTOR: Final = 4.0  # a step may take so much longer than expected before it counts as stuck
CANCELLED: Final = ("request_cancelled", "The request was cancelled.")
GRAMMAR_POLL_S: Final = 0.001  # how often grammars are asked about, while all there is to do waits for them

Pending = TypeVar("Pending")


class Runner(Protocol[Pending]):
    """Runs batches on a device. `launch` may return before the device is done; `collect` waits for it."""

    def launch(self, batch: Batch) -> Pending: ...

    def collect(self, pending: Pending) -> list[Sampled]: ...


@dataclass(frozen=True, slots=True)
class Flight(Generic[Pending]):
    """A step that was launched and not yet settled."""

    batch: Batch
    pending: Pending
    launched_s: float


class StepTime:
    """How long a step should take: no less than a small one does, and growing with its tokens."""

    LARGE: Final = 64  # tokens from which on a step's time says what a token costs

    def __init__(self, small_s: float, token_s: float) -> None:
        self._small_s = small_s
        self._token_s = token_s

    def expect(self, tokens: int) -> float:
        """Seconds."""
        return max(self._small_s, tokens * self._token_s)

    def observe(self, tokens: int, seconds: float) -> None:
        if tokens < self.LARGE:
            self._small_s += 0.2 * (seconds - self._small_s)
        else:
            self._token_s += 0.2 * (seconds / tokens - self._token_s)


class EngineCore(Generic[Pending]):
    """One model on one device, for any number of frontends."""

    def __init__(
        self,
        *,
        channel: EngineChannel,
        scheduler: Scheduler,
        runner: Runner[Pending],
        welcome: wire.Welcome,
        stats: Stats,
        clock: Callable[[], float],
        step_time: StepTime,
        overlap: int = 0,
        grammars: Grammars | None = None,
        resume_grace_s: float = 60.0,
    ) -> None:
        """`clock` is monotonic, in seconds. `grammars` are those that the runner's sampler knows. `resume_grace_s` is
        for how long what is resumable outlasts its reader, or its end."""
        self._stopping = False
        self._drain_until_s: float | None = None
        self._channel = channel
        self._scheduler = scheduler
        self._runner = runner
        self._welcome = welcome
        self._stats = stats
        self._clock = clock
        self._step_time = step_time
        self._overlap = overlap
        self._grammars = grammars or Grammars(welcome.card, scheduler.max_num_seqs)
        self._resting = False  # nothing could be launched, and nothing is in flight
        self._delivery = Delivery(welcome.epoch, channel.send)
        self._shelf = Shelf(resume_grace_s)
        self._step = 0
        self._metrics_s = 0.0
        self._metrics_serial = 0
        self._was_idle = True
        self._was_full = False

    def run(self) -> None:
        """Until a drain has ended. Whatever else ends it is told to the frontends, and raised."""
        try:
            self._loop()
        except BaseException as error:
            self._delivery.broadcast(wire.Dying(self._welcome.epoch, f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._grammars.close()

    def _loop(self) -> None:
        flights: deque[Flight[Pending]] = deque()
        while not self._stopping:
            for peer, command in self._channel.receive(self._patience_s):
                self._handle(peer, command)
            self._heed_grammars()
            launched = self._launch()
            if launched is not None:
                flights.append(launched)
            self._resting = not flights
            if len(flights) > self._overlap or (flights and launched is None):
                self._settle(flights.popleft())
            self._publish(LEASE_S)
            if self._drain_until_s is not None and (self._done or self._clock() >= self._drain_until_s):
                break
        self._dismiss()

    @property
    def _done(self) -> bool:
        """Everything is computed, given back and delivered."""
        return self._scheduler.idle and self._delivery.settled and not self._grammars.admission.waiting

    @property
    def _patience_s(self) -> float:
        """How long to wait for a command."""
        if not self._scheduler.idle and not self._resting:
            return 0.0
        if not self._scheduler.idle or self._grammars.admission.waiting:
            return GRAMMAR_POLL_S
        return HEARTBEAT_S if self._delivery.settled else RETRY_S

    def drain(self, limit_s: float) -> None:
        """Takes no new requests, and ends with the last of the running ones or after `limit_s`. Told again, it ends
        now. For signal handlers and other threads: the loop sees it within a second."""
        self._stopping = self._drain_until_s is not None
        self._drain_until_s = self._clock() + limit_s

    # ------------------------------------------------------------------------------------------------ commands

    def _handle(self, peer: bytes, command: wire.Command) -> None:
        match command:
            case wire.Hello(version=version, frontend=name):
                if version == wire.PROTOCOL_VERSION:
                    self._detach(self._delivery.join(peer, name))
                self._delivery.notify(peer, self._greeting(command))
            case wire.Generate():
                if (answer := self._answer(peer, command)) is not None:
                    self._delivery.notify(peer, answer)
            case wire.Abort(handles=handles):
                self._grammars.admission.forget(peer, handles)
                found = [self._delivery.find(peer, handle) for handle in handles]
                self._end([request for request in found if request is not None])
            case wire.Stop(handle=handle):
                if (request := self._delivery.find(peer, handle)) is not None:
                    self._end([request], wire.FinishReason.STOP)
            case wire.Cancel(rid=rid, key=key):
                self._delivery.notify(peer, wire.Cancelled(self._welcome.epoch, rid, self._cancel(rid, key)))
            case wire.Detach(handles=handles):
                found = [self._delivery.find(peer, handle) for handle in handles]
                self._detach([request for request in found if request is not None])
            case wire.Attach():
                self._attach(peer, command)

    def _greeting(self, hello: wire.Hello) -> wire.Welcome:
        """With the tokenizer, unless the frontend has it already."""
        card = self._welcome.card
        if hello.tokenizer_digest and hello.tokenizer_digest == card.tokenizer_digest:
            card = msgspec.structs.replace(card, tokenizer=b"")
        return msgspec.structs.replace(self._welcome, card=card)

    def _answer(self, peer: bytes, command: wire.Generate) -> wire.Accepted | wire.Rejected | None:
        """Takes the request in, whole, or says why not; or keeps it until its grammar is compiled."""
        epoch, limits = self._welcome.epoch, self._welcome.limits
        if command.epoch != epoch or peer not in self._delivery.frontends:
            return wire.Rejected(epoch, command.rid, "engine_restarting", "The engine has not met this frontend yet.")
        try:
            check(command, self._welcome.card, limits, list(map(highest, command.prompts)))
        except InvalidRequest as error:
            return wire.Rejected(epoch, command.rid, error.code, error.message, error.param)
        if self._drain_until_s is not None:
            return wire.Rejected(epoch, command.rid, "draining", "The server is shutting down.")
        if self._full:
            return wire.Rejected(epoch, command.rid, "queue_full", "As many requests are waiting as may.")
        try:
            if not self._grammars.admission.passed(peer, command):
                return None
        except InvalidRequest as error:
            return wire.Rejected(epoch, command.rid, error.code, error.message, error.param)
        requests = self._requests(peer, command)
        if any(self._delivery.find(peer, request.handle) is not None for request in requests):
            return wire.Rejected(epoch, command.rid, "internal_error", "A handle is in use already.")
        self._delivery.open(requests)
        if command.meta:
            self._shelf.keep(command.key, command.meta, requests)
        self._grammars.followings.follow(requests)
        for request in requests:
            self._scheduler.add(request)
        return wire.Accepted(epoch, command.rid)

    @property
    def _full(self) -> bool:
        """As many requests or tokens wait as may."""
        limits, waiting = self._welcome.limits, self._scheduler.queued_requests
        too_many_tokens = limits.max_queued_tokens and self._scheduler.queued_tokens >= limits.max_queued_tokens
        return waiting >= limits.max_queued_requests or bool(waiting and too_many_tokens)

    def _requests(self, peer: bytes, command: wire.Generate) -> list[Request]:
        leaders: dict[int, Request] = {}
        prompts = list(map(unpack, command.prompts))
        requests = []
        for sequence in command.sequences:
            request = Request(
                sequence.handle,
                command.rid,
                prompts[sequence.prompt],
                command.sampling,
                owner=peer,
                key=command.key,
                seed=command.seed,
                choice=sequence.choice,
                out=sequence.out,
                salt=bytes([len(command.key)]) + command.key + command.salt,
                priority=command.priority,
                arrival_s=self._clock(),
                leader=leaders.get(sequence.prompt),
            )
            leaders.setdefault(sequence.prompt, request)
            requests.append(request)
        return requests

    def _end(self, requests: list[Request], finish: wire.FinishReason | None = None) -> None:
        """Their readers want no more of them."""
        self._retire(requests, finish)
        for request in requests:
            self._delivery.close(request)

    def _detach(self, requests: list[Request]) -> None:
        """Their readers are gone. What is resumable goes on for its time of grace."""
        self._shelf.left(requests, self._clock())
        self._end([request for request in requests if not self._shelf.holds(request)])
        for request in requests:
            self._delivery.close(request)

    def _attach(self, peer: bytes, command: wire.Attach) -> None:
        """A new reader, who gets all that lies behind its positions."""
        epoch, rid, positions = self._welcome.epoch, command.rid, command.positions
        kept = self._shelf.find(rid, command.key)
        if kept is None or peer not in self._delivery.frontends or len(positions) not in (0, len(kept.requests)):
            self._delivery.notify(peer, wire.Unknown(epoch, rid))
            return
        self._shelf.read(kept)
        scored = kept.scored if not any(positions) else []
        self._delivery.notify(peer, wire.Attached(epoch, rid, kept.meta, len(kept.requests), scored))
        self._delivery.hand_over(kept.requests, peer, command.first_handle, positions)

    def _retire(self, requests: list[Request], finish: wire.FinishReason | None = None) -> None:
        """They yield no more, and what they hold goes back."""
        now_s = self._clock()
        if finish is None:
            self._shelf.drop(requests)
        for request in requests:
            if not request.ended:
                self._scheduler.end(request, finish)
                self._stats.ended(request, now_s)
        self._shelf.ended(requests, now_s)

    def _cancel(self, rid: str, key: bytes) -> bool:
        """Ends a request, whoever reads it and however far it has come. False if this key has none of that name."""
        unanswered = self._grammars.admission.withdraw(rid, key)
        for peer in unanswered:
            self._delivery.notify(peer, wire.Rejected(self._welcome.epoch, rid, *CANCELLED))
        kept = self._shelf.find(rid, key)
        found = self._delivery.named(rid, key) if kept is None else kept.running
        self._retire(found)  # before it fails: it counts as aborted
        self._delivery.fail(found, *CANCELLED)
        return bool(unanswered or found)

    def _heed_grammars(self) -> None:
        """Takes in the requests whose grammar is compiled, or not to be had, and ends those that theirs ends."""
        draining = self._drain_until_s is not None
        for peer, command in self._grammars.admission.settled(self._delivery.frontends, draining=draining):
            self._handle(peer, command)
        for request, failure in self._grammars.followings.concluded():
            request.failure = failure
            self._retire([request], wire.FinishReason.STOP if failure is None else None)
            self._delivery.mark([request])

    def _dismiss(self) -> None:
        """Tells those who still wait that nothing more will come."""
        epoch = self._welcome.epoch
        for frontend in list(self._delivery.frontends.values()):
            if handles := list(frontend.requests):
                failed = wire.Failed(epoch, handles, "draining", "The server shut down before this was complete.")
                self._delivery.notify(frontend.peer, failed)

    # ------------------------------------------------------------------------------------------------ steps

    def _launch(self) -> Flight[Pending] | None:
        now_s = self._clock()
        batch = self._scheduler.schedule(now_s)
        self._stats.scheduled(now_s)
        if batch is None:
            return None
        expected_s = self._step_time.expect(batch.num_tokens)
        if expected_s > LONG_STEP_S:
            self._publish(LEASE_S + LEASE_FACTOR * expected_s, announce=True)
        return Flight(batch, self._runner.launch(batch), now_s)

    def _settle(self, flight: Flight[Pending]) -> None:
        sampled = self._runner.collect(flight.pending)
        now_s = self._clock()
        advanced = self._scheduler.commit(flight.batch, sampled, now_s)
        self._grammars.followings.advance(advanced)
        self._step += 1
        self._delivery.mark([*advanced, *(row.request for row in flight.batch.scoring)])
        self._stats.stepped(flight.batch.num_tokens, advanced, now_s)
        ended = [request for request in advanced if request.ended]
        for request in ended:
            self._stats.ended(request, now_s)
        self._shelf.ended(ended, now_s)
        self._step_time.observe(flight.batch.num_tokens, now_s - flight.launched_s)

    def _publish(self, lease_s: float, *, announce: bool = False) -> None:
        now_s = self._clock()
        scheduler = self._scheduler
        usage = scheduler.pool.used / scheduler.pool.num_blocks
        draining, full = self._drain_until_s is not None, self._full
        load = wire.Load(len(scheduler.running), len(scheduler.waiting), usage, draining, full)
        # All frontends hear of these two at once, and what they show of an idle engine is exact.
        turned, self._was_full = full != self._was_full, full
        fell_idle, self._was_idle = scheduler.idle and not self._was_idle, scheduler.idle
        announce = announce or turned or fell_idle
        self._detach(self._delivery.flush(self._step, lease_s, load, now_s, announce=announce))
        self._end(self._shelf.expired(now_s))
        if scheduler.idle:
            self._stats.idle()
        if fell_idle or now_s - self._metrics_s >= METRICS_S:
            self._metrics_s = now_s
            self._metrics_serial += 1
            metrics = self._stats.snapshot(scheduler)
            self._delivery.broadcast(wire.Metrics(self._welcome.epoch, metrics, self._metrics_serial))
