"""Resumable requests: what another reader needs of them, for as long as one may come.

A request is here from its acceptance on. While somebody reads it, and it runs, it stays. From when nobody does, or
when it has ended, it has its time of grace; ended ones also have to leave, the oldest first, when together they take
too much memory. Its own log is all that is kept of a request: a reader gets what lies behind a position in it.

Pure: no clock but the one it is told, no sockets.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from engine_core.request import Request

ENDED_BYTES: Final = 64 << 20  # that requests which have ended may take together
TOKEN_BYTES: Final = 4
LOGPROB_BYTES: Final = 160  # of a token's log probability, and of each alternative's, about
OWN_BYTES: Final = 2048  # of a request beside its tokens, about


@dataclass(slots=True)
class Kept:
    """One request, which is all its sequences, in the order of their handles. `meta` is what its frontend said that it
    takes to render it."""

    rid: str
    key: bytes
    meta: bytes
    requests: list[Request]
    ends_s: float | None = None  # when its grace is over; None while it is read and runs
    nbytes: int = 0  # once it has ended

    @property
    def ended(self) -> bool:
        return all(request.ended for request in self.requests)

    @property
    def scored(self) -> list[int]:
        """Lengths of the prompts whose log probabilities belong to the answer."""
        return [request.prompt_len for request in self.requests if request.prompt_logprobs is not None]

    @property
    def running(self) -> list[Request]:
        return [request for request in self.requests if not request.ended]


class Shelf:
    """All of them, by request id."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s: Final = grace_s
        self._kept: dict[str, Kept] = {}
        self._graces: dict[str, Kept] = {}  # those whose time runs, in the order in which it ends
        self._nbytes = 0

    def keep(self, key: bytes, meta: bytes, requests: list[Request]) -> None:
        """Sequences of one request that has just been accepted, and is read."""
        rid = requests[0].rid
        self._kept[rid] = Kept(rid, key, meta, requests)

    def find(self, rid: str, key: bytes) -> Kept | None:
        """The request of this name, if it was made with this key."""
        kept = self._kept.get(rid)
        return kept if kept is not None and kept.key == key else None

    def holds(self, request: Request) -> bool:
        return request.rid in self._kept

    def read(self, kept: Kept) -> None:
        """Somebody reads it again."""
        if not kept.ended:
            self._graces.pop(kept.rid, None)
            kept.ends_s = None

    def left(self, requests: Iterable[Request], now_s: float) -> None:
        """Nobody reads these any more. Those that are not kept are passed over."""
        for rid in dict.fromkeys(request.rid for request in requests):
            if (kept := self._kept.get(rid)) is not None and kept.ends_s is None:
                self._let_run(kept, now_s)

    def ended(self, requests: Iterable[Request], now_s: float) -> None:
        """These sequences have ended well. With the last of a request its log is whole, and its grace begins anew."""
        for request in requests:
            kept = self._kept.get(request.rid)
            if kept is not None and kept.ended and not kept.nbytes:
                self._let_run(kept, now_s)
                kept.nbytes = len(kept.meta) + sum(map(_nbytes, kept.requests))
                self._nbytes += kept.nbytes
        self._shrink()

    def drop(self, requests: Iterable[Request]) -> None:
        """There is nothing to come back for."""
        for rid in dict.fromkeys(request.rid for request in requests):
            self._forget(rid)

    def expired(self, now_s: float) -> list[Request]:
        """Forgets the requests whose grace is over. Returns their sequences that still run."""
        running = []
        while self._graces:
            kept = next(iter(self._graces.values()))
            if kept.ends_s is None or kept.ends_s > now_s:
                break
            running += kept.running
            self._forget(kept.rid)
        return running

    @property
    def next_s(self) -> float | None:
        """When the next one's grace is over."""
        return next((kept.ends_s for kept in self._graces.values()), None)

    def __len__(self) -> int:
        return len(self._kept)

    def _let_run(self, kept: Kept, now_s: float) -> None:
        kept.ends_s = now_s + self._grace_s
        self._graces.pop(kept.rid, None)
        self._graces[kept.rid] = kept  # every grace is as long as the others: the last to begin is the last to end

    def _shrink(self) -> None:
        for kept in list(self._graces.values()):
            if self._nbytes <= ENDED_BYTES:
                return
            if kept.nbytes:
                self._forget(kept.rid)

    def _forget(self, rid: str) -> None:
        self._graces.pop(rid, None)
        if (kept := self._kept.pop(rid, None)) is not None:
            self._nbytes -= kept.nbytes


def _nbytes(request: Request) -> int:
    entries = sum(1 + len(entry.top_ids) for entry in request.logprobs or ())
    portions = sum(portion.numbers for portion in request.prompt_logprobs or ())
    return OWN_BYTES + TOKEN_BYTES * len(request.tokens) + LOGPROB_BYTES * entries + 8 * portions
