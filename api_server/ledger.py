"""What the frontends of one address have counted, together: each writes its own down four times a second, and whoever
is asked adds all of it up.

The engine's figures are written down, too: it tells every frontend the same, but not at the same moment, and who is
asked next must not know less. So a counter never goes back, whichever frontend is asked, and one that dies or is
replaced takes nothing with it but what it had running.
"""

import asyncio
import logging
import time
from typing import Final, NamedTuple

import msgspec

from api_server.board import Board
from api_server.engine_client import EngineClient
from api_server.tallies import Tallies
from protocol.metrics import EngineMetrics

logger: Final = logging.getLogger("tokenwire.ledger")

TICK_S: Final = 0.25
FRESH_S: Final = 1.0  # what a frontend said of the engine longer ago, being stuck, is not believed


class Told(msgspec.Struct, array_like=True, frozen=True):
    """Figures that an engine has told, and when. Times are on the clock that all processes of a machine share."""

    at_s: float
    epoch: int
    serial: int
    figures: msgspec.Raw  # an EngineMetrics; only the newest of all is decoded


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A frontend's record."""

    at_s: float
    tallies: Tallies
    connected: bool  # to the engine
    ready: bool  # the engine is
    epoch: int  # of the engine it is or was connected to
    heard_s: float  # from the engine
    told: Told


class Total(NamedTuple):
    """All frontends' counts, and what they know of the engine."""

    tallies: Tallies
    engine: EngineMetrics
    connected: bool  # one of them is
    ready: bool  # for one of them
    epoch: int
    heartbeat_age_s: float


class Ledger:
    """This frontend's part of it, and the sum. Started in the process that counts, since the place is the process's."""

    def __init__(self, engine: EngineClient) -> None:
        self.board: Board | None = None
        self._engine: Final = engine
        self._tallies: Final = engine.tallies
        self._timer: asyncio.TimerHandle | None = None
        self._inherited: Told | None = None  # stands until the engine tells something new

    def start(self, descriptor: int | None) -> None:
        """Goes on where the last holder of the place stopped. `descriptor` is of the shared memory. Without it, or
        where the kernel does not have what it takes, this frontend counts for itself."""
        try:
            self.board = Board(descriptor)
        except OSError as error:
            logger.warning("the metrics of this frontend are its own alone: %s", error)
        if self.board is not None and (inherited := _decoded(self.board.inherited)) is not None:
            self._tallies.add(inherited.tallies)
            self._inherited = inherited.told
        self._tick(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Leaves what was counted to the next holder of the place."""
        if self._timer is not None:
            self._timer.cancel()
        if self.board is not None:
            self.board.write(_encoder.encode(self._entry()))
            self.board.close()
            self.board = None

    def total(self) -> Total:
        """Of all frontends up to a quarter of a second ago, of this one up to now, and of the engine as it last told
        one of them."""
        mine = self._entry()
        dead: list[Entry] = []
        alive = [mine]
        if self.board is not None:
            self.board.write(_encoder.encode(mine))
            alive = []
            for lives, payload in self.board.records():
                if (entry := _decoded(payload)) is not None:
                    (alive if lives else dead).append(entry)
        tallies = Tallies(streams=sum(entry.tallies.streams for entry in alive))
        for entry in alive + dead:
            tallies.add(entry.tallies)
        fresh = [entry for entry in alive if entry.at_s > mine.at_s - FRESH_S]
        last = max(fresh, key=lambda entry: (entry.connected, entry.heard_s))
        return Total(
            tallies,
            _newest([entry.told for entry in alive + dead]),
            any(entry.connected for entry in fresh),
            any(entry.ready for entry in fresh),
            last.epoch,
            max(0.0, mine.at_s - last.heard_s),
        )

    def _tick(self, due_s: float) -> None:
        """Due at `due_s`; how much later it is now is the loop's lag."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._timer = loop.call_at(now_s + TICK_S, self._tick, now_s + TICK_S)
        self._tallies.late(max(0.0, now_s - due_s))
        if self.board is not None:
            self.board.beat()
            self.board.write(_encoder.encode(self._entry()))

    def _entry(self) -> Entry:
        engine, now_s = self._engine, time.monotonic()
        heard_s = now_s - engine.heartbeat_age_s
        return Entry(now_s, self._tallies, engine.connected, engine.ready, engine.epoch, heard_s, self._told())

    def _told(self) -> Told:
        told, at_s = self._engine.told, self._engine.told_s
        if self._inherited is not None and self._inherited.at_s > at_s:
            return self._inherited
        return Told(at_s, told.epoch, told.serial, msgspec.Raw(_encoder.encode(told.metrics)))


def _newest(found: list[Told]) -> EngineMetrics:
    """Those with the highest serial of the engine that told something last: an engine's epoch says nothing of
    another's."""
    epoch = max(found, key=lambda told: told.at_s).epoch
    newest = max((told for told in found if told.epoch == epoch), key=lambda told: told.serial)
    return _metrics_decoder.decode(newest.figures)


def _decoded(payload: bytes) -> Entry | None:
    """None for what an earlier version of this program has left."""
    try:
        return _decoder.decode(payload) if payload else None
    except msgspec.MsgspecError:
        return None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Entry)
_metrics_decoder: Final = msgspec.msgpack.Decoder(EngineMetrics)
