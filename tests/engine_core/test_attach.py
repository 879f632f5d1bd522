"""Another reader takes a resumable request over: through the real loop, with two frontends and a made-up device."""

from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from engine_core.core import EngineCore
from protocol import messages as wire
from protocol.channel import Sent
from tests.engine_core.test_core import HELLO, Lines, engine, generate

FIRST, SECOND = b"first", b"second"
OTHER_HELLO = wire.Hello(wire.PROTOCOL_VERSION, b"g" * 16, b"c" * 16)
KEY = b"mine"
GRACE_S = 60.0
META = b"how to render it"
PROMPT = (1, 2, 3)

Turn = list[tuple[bytes, wire.Command]] | Callable[[], None]


class Play(Lines):
    """Gives one turn's commands per turn of the loop, or calls what is no list; then the engine drains."""

    def __init__(self, *turns: Turn) -> None:
        super().__init__()
        self.turns = deque(turns)
        self.sent: list[tuple[bytes, wire.Event]] = []
        self.gone: set[bytes] = set()
        self.now_s = 0.0
        self.core: EngineCore[object] | None = None

    def receive(self, timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        assert self.core is not None
        if not self.turns:
            if self.core._drain_until_s is None:
                self.core.drain(5.0)
            return []
        turn = self.turns.popleft()
        if isinstance(turn, list):
            return turn
        turn()
        return []

    def send(self, peer: bytes, event: wire.Event) -> Sent:
        if peer in self.gone:
            return Sent.GONE
        self.sent.append((peer, event))
        return Sent.YES

    def run(self) -> "Play":
        self.core, _ = engine(None, self)
        self.core._clock = lambda: self.now_s
        self.core.run()
        assert self.core._scheduler.pool.used == 0
        return self

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def finished(self) -> dict[str, int]:
        """How the engine counts its requests' ends."""
        *_, last = self.told(SECOND, wire.Metrics)
        assert isinstance(last, wire.Metrics)
        return last.metrics.finished

    def told(self, peer: bytes, kind: type[wire.Event]) -> list[wire.Event]:
        return [event for to, event in self.sent if to == peer and isinstance(event, kind)]

    def read(self, peer: bytes, handle: int) -> tuple[int, list[int], wire.FinishReason | None]:
        """Where it began, the tokens, and the end, of what a peer got under a handle."""
        start, tokens, finish = -1, list[int](), None
        for event in self.told(peer, wire.Step):
            assert isinstance(event, wire.Step)
            for delta in event.deltas:
                if delta.handle == handle:
                    start = delta.pos if start < 0 else start
                    assert delta.pos == start + len(tokens)
                    tokens += delta.tokens
                    finish = delta.finish
        return start, tokens, finish


def expected(count: int) -> list[int]:
    return [PROMPT[at % 3] for at in range(count)]


def begin(max_tokens: int = 8, n: int = 1) -> wire.Generate:
    return msgspec.structs.replace(generate(0, prompt=PROMPT, max_tokens=max_tokens, key=KEY, n=n), meta=META)


HELLOS: Turn = [(FIRST, HELLO), (SECOND, OTHER_HELLO)]


def attach(handle: int = 50, positions: tuple[int, ...] = (), key: bytes = KEY, rid: str = "r0") -> wire.Attach:
    return wire.Attach(rid, handle, key, list(positions))


def test_a_running_request_goes_on_for_its_new_reader_from_the_beginning() -> None:
    play = Play(HELLOS, [(FIRST, begin(n=2))], [], [], [(SECOND, attach())]).run()
    assert play.told(SECOND, wire.Attached) == [wire.Attached(3, "r0", META, 2)]
    assert play.told(FIRST, wire.Taken) == [wire.Taken(3, [0, 1])]
    for handle in (50, 51):
        assert play.read(SECOND, handle) == (0, expected(8), wire.FinishReason.LENGTH)
    for handle in (0, 1):
        start, tokens, finish = play.read(FIRST, handle)
        assert (start, finish) == (0, None)
        assert 0 < len(tokens) < 8


@pytest.mark.parametrize("position", range(9))
def test_positions_say_what_the_reader_has(position: int) -> None:
    """A position that is not yet there counts as the last one that is."""
    play = Play(HELLOS, [(FIRST, begin())], *[[]] * 12, [(SECOND, attach(positions=(position,)))]).run()
    assert play.read(SECOND, 50) == (position, expected(8)[position:], wire.FinishReason.LENGTH)


def test_one_that_has_ended_is_told_again_as_often_as_somebody_asks() -> None:
    asks: list[Turn] = [[(SECOND, attach(50))], [], [(FIRST, attach(60))], []]
    play = Play(HELLOS, [(FIRST, begin())], *[[]] * 12, *asks).run()
    assert play.read(FIRST, 0) == play.read(SECOND, 50) == play.read(FIRST, 60)
    assert play.told(FIRST, wire.Taken) == []  # nobody lost anything


def test_first_token_s_timing_comes_again() -> None:
    play = Play(HELLOS, [(FIRST, begin())], *[[]] * 12, [(SECOND, attach())]).run()
    steps = [event for event in play.told(SECOND, wire.Step) if isinstance(event, wire.Step)]
    [delta] = [delta for step in steps for delta in step.deltas]
    assert delta.first is not None


@pytest.mark.parametrize("ask", [attach(key=b"other"), attach(key=b""), attach(rid="r1"), attach(positions=(0, 0))])
def test_anything_else_is_unknown_and_disturbs_nobody(ask: wire.Attach) -> None:
    play = Play(HELLOS, [(FIRST, begin())], [], [(SECOND, ask)]).run()
    assert play.told(SECOND, wire.Unknown) == [wire.Unknown(3, ask.rid)]
    assert play.told(FIRST, wire.Taken) == []
    assert play.read(FIRST, 0) == (0, expected(8), wire.FinishReason.LENGTH)


def test_what_was_made_without_meta_can_t_be_resumed() -> None:
    play = Play(HELLOS, [(FIRST, generate(0, prompt=PROMPT, key=KEY))], [], [(SECOND, attach())]).run()
    assert play.told(SECOND, wire.Unknown) == [wire.Unknown(3, "r0")]


@pytest.mark.parametrize("command", [wire.Abort([0]), wire.Cancel("r0", KEY)])
def test_what_was_aborted_or_cancelled_is_gone(command: wire.Command) -> None:
    play = Play(HELLOS, [(FIRST, begin(max_tokens=100))], [], [(FIRST, command)], [], [(SECOND, attach())]).run()
    assert play.told(SECOND, wire.Unknown) == [wire.Unknown(3, "r0")]


def test_what_was_stopped_by_its_reader_is_kept() -> None:
    play = Play(
        HELLOS, [(FIRST, begin(max_tokens=100))], *[[]] * 4, [(FIRST, wire.Stop(0, 2))], [], [(SECOND, attach())]
    ).run()
    start, tokens, finish = play.read(SECOND, 50)
    assert (start, finish) == (0, wire.FinishReason.STOP)
    assert tokens[:2] == expected(2)


def test_a_frontend_that_is_gone_takes_nothing_with_it_that_is_resumable() -> None:
    play = Play()
    play.turns.extend(
        [
            HELLOS,
            [(FIRST, begin(max_tokens=60))],
            [(FIRST, generate(1, max_tokens=60))],
            [],
            lambda: play.gone.add(FIRST),
        ]
    )
    play.turns.extend([*[[]] * 5, [(SECOND, attach())]])
    play.run()
    assert play.read(SECOND, 50) == (0, expected(60), wire.FinishReason.LENGTH)
    assert play.finished()["abort"] == 1  # the other one


def test_one_that_nobody_reads_can_be_cancelled() -> None:
    play = Play()
    play.turns.extend([HELLOS, [(FIRST, begin(max_tokens=100))], [], lambda: play.gone.add(FIRST), []])
    play.turns.extend([[(SECOND, wire.Cancel("r0", KEY))], [(SECOND, attach())]])
    play.run()
    assert play.told(SECOND, wire.Cancelled) == [wire.Cancelled(3, "r0", True)]
    assert play.told(SECOND, wire.Unknown) == [wire.Unknown(3, "r0")]


def test_nobody_comes_and_it_ends() -> None:
    play = Play()
    play.turns.extend([HELLOS, [(FIRST, begin(max_tokens=100))], [], lambda: play.gone.add(FIRST)])
    play.turns.extend([[]] * 3)
    play.turns.append(lambda: play.wait(GRACE_S))
    play.turns.extend([[], [], [(SECOND, attach())]])
    play.run()
    assert play.told(SECOND, wire.Unknown) == [wire.Unknown(3, "r0")]
    assert play.finished() == {"stop": 0, "length": 0, "abort": 1, "error": 0}


def test_the_same_reader_may_take_it_again() -> None:
    play = Play(HELLOS, [(FIRST, begin(max_tokens=20))], *[[]] * 4, [(FIRST, attach(7, positions=(1,)))]).run()
    assert play.told(FIRST, wire.Taken) == [wire.Taken(3, [0])]
    assert play.read(FIRST, 7) == (1, expected(20)[1:], wire.FinishReason.LENGTH)
