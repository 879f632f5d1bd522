"""What each frontend has yet to take: a position in every request's log, never a queue of tokens.

After a step, whatever lies behind those positions goes out in one Step per frontend. A frontend that takes nothing more
costs nothing more; when it takes again, it gets everything since then at once. Knows no sockets: it is given a function
that sends, and says what became of it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from engine_core.request import Request
from protocol.channel import Sent
from protocol.messages import Delta, Event, Failed, Load, Step, Taken

HEARTBEAT_S: Final = 1.0
RETRY_S: Final = 0.02  # after a frontend took nothing, until it is asked again
STEP_NUMBERS: Final = 250_000  # about as many numbers go into one Step: some two megabytes
# Acceptances and refusals that may wait for one frontend. Its own queue holds fewer commands, so one that takes nothing
# can't fill this.
NOTICES_MAX: Final = 4096

Send = Callable[[bytes, Event], Sent]


class Parcel(NamedTuple):
    """What one Step holds of one request."""

    request: Request
    deltas: list[Delta]
    portions: int  # of the prompt's log probabilities
    complete: bool  # there is nothing more to tell


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
        self._named: dict[str, set[Request]] = {}  # sequences by request id, until all of them is delivered

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
        orphans = [] if frontend is None else list(frontend.requests.values())
        for request in orphans:
            self._unname(request)
        return orphans

    def open(self, requests: Iterable[Request]) -> None:
        """From here on their owner reads them."""
        for request in requests:
            self.frontends[request.owner].requests[request.handle] = request
            self._named.setdefault(request.rid, set()).add(request)

    def close(self, request: Request) -> None:
        """Nobody wants the rest of it."""
        if (frontend := self.frontends.get(request.owner)) is not None:
            frontend.requests.pop(request.handle, None)
            frontend.news.pop(request.handle, None)
        self._unname(request)

    def hand_over(self, requests: Sequence[Request], peer: bytes, first_handle: int, positions: Sequence[int]) -> None:
        """The sequences of one request get another reader, or the same one anew, which has read them up to these
        positions, or nothing of them. Those who read them so far are told."""
        taken: dict[bytes, list[int]] = {}
        for request in requests:
            if self.find(request.owner, request.handle) is request:
                taken.setdefault(request.owner, []).append(request.handle)
                self.close(request)
        for former, handles in taken.items():
            self.notify(former, Taken(self._epoch, handles))
        for number, request in enumerate(requests):
            request.owner, request.handle = peer, first_handle + number
            request.delivered = min(positions[number], request.out_len) if positions else 0
            request.prompt_delivered = len(request.prompt_logprobs or ()) if any(positions) else 0
        self.open(requests)
        self.mark(requests)

    def find(self, peer: bytes, handle: int) -> Request | None:
        frontend = self.frontends.get(peer)
        return None if frontend is None else frontend.requests.get(handle)

    def named(self, rid: str, key: bytes) -> list[Request]:
        """The sequences of a request that have not ended, whoever reads them, if it was made with this key."""
        return [request for request in self._named.get(rid, ()) if request.key == key and not request.ended]

    def fail(self, requests: Iterable[Request], code: str, message: str) -> None:
        """They have ended without a finish, and their owners are told so behind the tokens that there are."""
        for request in requests:
            request.failure = (code, message)
            self.mark([request])

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
                parcels = _packed(frontend.news.values())
                deltas = [delta for parcel in parcels for delta in parcel.deltas]
                outcome = self._send(frontend.peer, Step(self._epoch, step, lease_s, deltas, load))
                if outcome is Sent.YES:
                    frontend.sent_s = now_s
                    self._delivered(frontend, parcels)
                    outcome = self._send_notices(frontend)
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

    def _delivered(self, frontend: Frontend, parcels: Iterable[Parcel]) -> None:
        failed: dict[tuple[str, str], list[int]] = {}
        for request, _, portions, complete in parcels:
            request.prompt_delivered += portions
            if not complete:
                continue
            request.delivered = request.out_len
            del frontend.news[request.handle]
            if request.failure is not None:
                failed.setdefault(request.failure, []).append(request.handle)
            if request.ended:
                self.close(request)
        for (code, message), handles in failed.items():
            frontend.notices.append(Failed(self._epoch, handles, code, message))

    def _unname(self, request: Request) -> None:
        sequences = self._named.get(request.rid)
        if sequences is not None:
            sequences.discard(request)
            if not sequences:
                del self._named[request.rid]


def _packed(requests: Iterable[Request]) -> list[Parcel]:
    """The first of what there is to tell, as much as fits into one Step, and something at least: what a frontend has
    not taken for long may be more than a message can hold. The tokens of one request are never split."""
    parcels: list[Parcel] = []
    room = STEP_NUMBERS
    for request in requests:
        portions = (request.prompt_logprobs or [])[request.prompt_delivered :]
        deltas: list[Delta] = []
        for portion in portions:
            room -= portion.numbers
            if room < 0 and (parcels or deltas):
                break
            deltas.append(Delta(request.handle, request.delivered, [], prompt=portion))
        count = len(deltas)
        complete = count == len(portions)
        if complete and _told(request):
            room -= _token_numbers(request)
            if complete := room >= 0 or not (parcels or deltas):
                deltas.append(_delta(request))
        parcels.append(Parcel(request, deltas, count, complete))
        if room < 0:
            break
    return parcels


def _token_numbers(request: Request) -> int:
    tokens, logprobs = request.out_len - request.delivered, request.sampling.logprobs
    return tokens if logprobs is None else tokens * (4 + 2 * logprobs)


def _told(request: Request) -> bool:
    """There is a token, or an end that is no failure."""
    return request.out_len > request.delivered or request.finish is not None


def _delta(request: Request) -> Delta:
    """Everything in the log that its owner has not taken yet."""
    since = request.delivered
    return Delta(
        request.handle,
        since,
        request.tokens[request.prompt_len + since :].tolist(),
        request.finish,
        request.stop_token,
        request.first if since == request.replayed else None,
        None if request.logprobs is None else request.logprobs[since - request.replayed :],
    )
