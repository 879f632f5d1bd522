"""What each frontend has yet to take: a position in every request's log, never a queue of tokens.

After a step, whatever lies behind those positions goes out in one Step per frontend. A frontend that takes nothing more
costs nothing more; when it takes again, it gets everything since then at once. Knows no sockets: it is given a function
that sends, and says what became of it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from engine_core.request import Request
from protocol.channel import Sent
from protocol.messages import Delta, Event, Load, Step

HEARTBEAT_S: Final = 1.0
RETRY_S: Final = 0.02  # after a frontend took nothing, until it is asked again
STEP_NUMBERS: Final = 250_000  # about as many numbers go into one Step: some two megabytes
# Acceptances and refusals that may wait for one frontend. Its own queue holds fewer commands, so one that takes nothing
# can't fill this.
NOTICES_MAX: Final = 4096

Send = Callable[[bytes, Event], Sent]


class Frontend:
    """One connection of one frontend process."""

    def __init__(self, peer: bytes, name: bytes) -> None:
        self.peer = peer
        self.name = name
        self.requests: dict[int, Request] = {}  # by handle, until all of it is delivered
        self.news: dict[int, Request] = {}  # those with something undelivered
        self.notices: deque[Event] = deque(maxlen=NOTICES_MAX)  # go out before the next Step
        self.sent_s = 0.0  # when it last took a Step
        self.retry_s = 0.0  # it is full, and not asked again before


class Delivery:
    """All frontends, and which of them reads which request."""

    def __init__(self, epoch: int, send: Send) -> None:
        self.frontends: dict[bytes, Frontend] = {}
        self._epoch = epoch
        self._send = send

    def join(self, peer: bytes, name: bytes) -> list[Request]:
        """A frontend says hello. Returns the requests of its earlier connections, which nobody reads any more."""
        if peer in self.frontends:
            return []
        orphans = []
        for earlier in [frontend.peer for frontend in self.frontends.values() if frontend.name == name]:
            orphans += self.leave(earlier)
        self.frontends[peer] = Frontend(peer, name)
        return orphans

    def leave(self, peer: bytes) -> list[Request]:
        """The connection is gone. Returns its requests."""
        frontend = self.frontends.pop(peer, None)
        return [] if frontend is None else list(frontend.requests.values())

    def open(self, requests: Iterable[Request]) -> None:
        """From here on their owner reads them."""
        for request in requests:
            self.frontends[request.owner].requests[request.handle] = request

    def close(self, request: Request) -> None:
        """Nobody wants the rest of it."""
        if (frontend := self.frontends.get(request.owner)) is not None:
            frontend.requests.pop(request.handle, None)
            frontend.news.pop(request.handle, None)

    def find(self, peer: bytes, handle: int) -> Request | None:
        frontend = self.frontends.get(peer)
        return None if frontend is None else frontend.requests.get(handle)

    def mark(self, requests: Iterable[Request]) -> None:
        """There is something new in their logs."""
        for request in requests:
            if (frontend := self.frontends.get(request.owner)) is not None and request.handle in frontend.requests:
                frontend.news[request.handle] = request

    def notify(self, peer: bytes, event: Event) -> None:
        """Sends, or keeps for the next flush. A peer that has not joined is told once, for what it is worth."""
        if (frontend := self.frontends.get(peer)) is not None:
            frontend.notices.append(event)
            self._send_notices(frontend)
        else:
            self._send(peer, event)

    def broadcast(self, event: Event) -> None:
        """To whoever can take it right now."""
        for peer in self.frontends:
            self._send(peer, event)

    @property
    def settled(self) -> bool:
        """There is nothing that a frontend has yet to take."""
        return not any(frontend.news or frontend.notices for frontend in self.frontends.values())

    def flush(self, step: int, lease_s: float, load: Load, now_s: float, *, announce: bool = False) -> list[Request]:
        """Everything undelivered, and a heartbeat to those that had none for a second (all of them, to `announce` a new
        lease). Returns the requests of frontends that turn out to be gone."""
        orphans = []
        for frontend in list(self.frontends.values()):
            if now_s < frontend.retry_s:
                continue
            outcome = self._send_notices(frontend)
            due = announce or bool(frontend.news) or now_s - frontend.sent_s >= HEARTBEAT_S
            while outcome is Sent.YES and due:
                some = _portion(frontend.news.values())
                deltas = [_delta(request) for request in some]
                outcome = self._send(frontend.peer, Step(self._epoch, step, lease_s, deltas, load))
                if outcome is Sent.YES:
                    frontend.sent_s = now_s
                    self._delivered(frontend, some)
                    due = bool(frontend.news)
            if outcome is Sent.FULL:
                frontend.retry_s = now_s + RETRY_S
            elif outcome is Sent.GONE:
                orphans += self.leave(frontend.peer)
        return orphans

    def _send_notices(self, frontend: Frontend) -> Sent:
        while frontend.notices:
            outcome = self._send(frontend.peer, frontend.notices[0])
            if outcome is not Sent.YES:
                return outcome
            frontend.notices.popleft()
        return Sent.YES

    def _delivered(self, frontend: Frontend, requests: Iterable[Request]) -> None:
        for request in requests:
            request.delivered = request.out_len
            del frontend.news[request.handle]
            if request.ended:
                del frontend.requests[request.handle]


def _portion(requests: Iterable[Request]) -> list[Request]:
    """The first of them, as many as fit into one Step, and one at least: what a frontend has not taken for long may be
    more than a message can hold."""
    chosen: list[Request] = []
    numbers = 0
    for request in requests:
        tokens = request.out_len - request.delivered
        logprobs = request.sampling.logprobs
        numbers += tokens if logprobs is None else tokens * (4 + 2 * logprobs)
        if chosen and numbers > STEP_NUMBERS:
            break
        chosen.append(request)
    return chosen


def _delta(request: Request) -> Delta:
    """Everything in the log that its owner has not taken yet."""
    since = request.delivered
    return Delta(
        request.handle,
        since,
        request.tokens[request.prompt_len + since :],
        request.finish,
        request.stop_token,
        request.first if since == request.replayed else None,
        None if request.logprobs is None else request.logprobs[since - request.replayed :],
    )
