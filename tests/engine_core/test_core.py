"""The step loop with a made-up device, and a channel that is two lists."""

import itertools
import time
from collections import deque

import msgspec
import pytest

from engine_core.cache.blocks import BlockPool
from engine_core.core import EngineCore, StepTime
from engine_core.grammar.grammars import Grammars
from engine_core.request import Request
from engine_core.scheduler import Scheduler
from engine_core.stats import Stats
from protocol import messages as wire
from protocol.channel import EngineChannel, Sent
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from protocol.tokens import pack
from tests.fakes import MadeUpDevice, card, echo

PEER = b"peer"
LIMITS = wire.Limits(kv_tokens=160, max_num_seqs=4, max_queued_requests=2, max_queued_tokens=0)


class Lines(EngineChannel):
    """What comes down is put into `commands`, what goes up is found in `events`."""

    def __init__(self) -> None:
        self.commands: deque[tuple[bytes, wire.Command]] = deque()
        self.events: list[wire.Event] = []
        self.outcome = Sent.YES
        self.waits: list[float] = []

    def receive(self, timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        self.waits.append(timeout_s)
        taken = list(self.commands)
        self.commands.clear()
        return taken

    def send(self, peer: bytes, event: wire.Event) -> Sent:
        if self.outcome is Sent.YES:
            self.events.append(event)
        return self.outcome

    def of(self, kind: type[wire.Event]) -> list[wire.Event]:
        return [event for event in self.events if isinstance(event, kind)]


def engine(device: MadeUpDevice | None = None, lines: Lines | None = None) -> tuple[EngineCore[object], Lines]:
    lines = lines or Lines()
    scheduler = Scheduler(
        pool=BlockPool(11), index=None, block_size=16, max_num_seqs=4, max_num_batched_tokens=64, eos_token_ids=[0]
    )
    core: EngineCore[object] = EngineCore(
        channel=lines,
        scheduler=scheduler,
        runner=device or MadeUpDevice(),  # type: ignore[arg-type]
        welcome=wire.Welcome(wire.PROTOCOL_VERSION, 3, card(), LIMITS),
        stats=Stats("m", 16, 10),
        clock=time.monotonic,
        step_time=StepTime(0.001, 0.0),
    )
    return core, lines


HELLO = wire.Hello(wire.PROTOCOL_VERSION, b"f" * 16, b"b" * 16)


def generate(
    handle: int = 0,
    epoch: int = 3,
    prompt: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 4,
    key: bytes = b"",
    n: int = 1,
) -> wire.Generate:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    sequences = [wire.Sequence(handle + choice, 0, choice) for choice in range(n)]
    return wire.Generate(epoch, f"r{handle}", [pack(prompt)], sequences, sampling, 0, key=key)


class Script(Lines):
    """Gives one list of commands per turn of the loop; when they are used up, the engine is drained."""

    def __init__(self, *turns: list[wire.Command]) -> None:
        super().__init__()
        self.turns = deque(turns)
        self.core: EngineCore[object] | None = None

    def receive(self, timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        self.waits.append(timeout_s)
        if self.turns:
            return [(PEER, command) for command in self.turns.popleft()]
        assert self.core is not None
        if self.core._drain_until_s is None:
            self.core.drain(5.0)
        return []


def said(*turns: list[wire.Command], device: MadeUpDevice | None = None) -> Script:
    """What an engine says to these and until it is idle."""
    script = Script(*turns)
    script.core, _ = engine(device, script)
    script.core.run()
    return script


def tokens_of(lines: Lines, handle: int = 0) -> list[int]:
    steps = [event for event in lines.events if isinstance(event, wire.Step)]
    return [token for step in steps for delta in step.deltas if delta.handle == handle for token in delta.tokens]


def test_welcome_then_acceptance_then_tokens() -> None:
    script = said([HELLO], [generate()])
    kinds = [type(event) for event in script.events if not isinstance(event, wire.Metrics)]
    assert kinds[0] is wire.Welcome
    assert kinds.index(wire.Accepted) < len(kinds) - 1
    assert tokens_of(script) == [1, 2, 3, 1]


def test_the_tokenizer_is_not_sent_twice() -> None:
    digest = b"d" * 16
    script = Script([wire.Hello(wire.PROTOCOL_VERSION, b"f" * 16, b"b" * 16, digest)])
    script.core, _ = engine(None, script)
    welcome = wire.Welcome(wire.PROTOCOL_VERSION, 3, card(tokenizer=b"{}", tokenizer_digest=digest), LIMITS)
    script.core._welcome = welcome
    script.core.run()
    [answer] = script.of(wire.Welcome)
    assert isinstance(answer, wire.Welcome)
    assert answer.card.tokenizer == b""
    assert answer.card.tokenizer_digest == digest


@pytest.mark.parametrize(
    ("turns", "code"),
    [
        ([[generate()]], "engine_restarting"),  # without a Hello
        ([[HELLO], [generate(epoch=2)]], "engine_restarting"),
        ([[HELLO], [generate(epoch=2, prompt=(1,) * 500)]], "engine_restarting"),
        ([[HELLO], [generate(prompt=(5000,))]], "invalid_request_error"),
        ([[HELLO], [generate(max_tokens=500)]], "context_length_exceeded"),
        ([[HELLO], [generate(), generate()]], "internal_error"),
    ],
)
def test_refusals(turns: list[list[wire.Command]], code: str) -> None:
    refused = said(*turns).of(wire.Rejected)
    assert [event.code for event in refused if isinstance(event, wire.Rejected)] == [code]


def test_the_queue_has_an_end() -> None:
    script = said([HELLO], [generate(handle) for handle in range(8)])
    assert len(script.of(wire.Accepted)) == 4 + 2
    assert {event.code for event in script.of(wire.Rejected) if isinstance(event, wire.Rejected)} == {"queue_full"}


def test_a_frontend_that_waits_for_nothing_hears_at_once_that_the_queue_is_full_and_that_it_is_not() -> None:
    class Bystander(Script):
        """Another frontend, which says hello and asks for nothing."""

        def __init__(self, *turns: list[wire.Command]) -> None:
            super().__init__(*turns)
            self.heard: list[bool] = []

        def receive(self, timeout_s: float) -> list[tuple[bytes, wire.Command]]:
            taken = super().receive(timeout_s)
            hello = wire.Hello(wire.PROTOCOL_VERSION, b"g" * 16, b"b" * 16)
            return [*taken, (b"other", hello)] if (PEER, HELLO) in taken else taken

        def send(self, peer: bytes, event: wire.Event) -> Sent:
            if peer == b"other" and isinstance(event, wire.Step):
                self.heard.append(event.load.full)
            return super().send(peer, event)

    script = Bystander([HELLO], [generate(handle) for handle in range(8)])
    script.core, _ = engine(None, script)
    script.core.run()
    assert [full for full, _ in itertools.groupby(script.heard)] == [False, True, False]


def test_another_version_is_greeted_but_not_served() -> None:
    script = said([wire.Hello(99, b"f" * 16, b"b" * 16)], [generate()])
    assert len(script.of(wire.Welcome)) == 1
    assert len(script.of(wire.Rejected)) == 1


def test_an_abort_is_silent_and_a_stop_is_a_success() -> None:
    endless = generate(0, max_tokens=100), generate(1, max_tokens=100)
    script = said([HELLO], [*endless], [], [wire.Abort([0, 77]), wire.Stop(1, 1)])
    [*_, last] = script.of(wire.Metrics)
    assert isinstance(last, wire.Metrics)
    assert last.metrics.finished == {"stop": 1, "length": 0, "abort": 1, "error": 0}
    assert last.metrics.gauges["vllm:num_requests_running"] == 0
    assert len(tokens_of(script, 0)) < 5
    assert script.of(wire.Failed) == []


def test_a_drain_ends_when_everything_is_taken() -> None:
    script = Script([HELLO], [generate()], [], [], [], [], [])
    script.core, _ = engine(None, script)
    refusing = iter([Sent.YES] * 3 + [Sent.FULL] * 6)
    taken = script.send

    def send(peer: bytes, event: wire.Event) -> Sent:
        script.outcome = next(refusing, Sent.YES)
        return taken(peer, event)

    script.send = send  # type: ignore[method-assign]
    script.core.run()
    assert tokens_of(script) == [1, 2, 3, 1]


def test_what_outlasts_the_drain_is_told() -> None:
    script = Script([HELLO], [generate(max_tokens=100)], [])
    script.core, _ = engine(MadeUpDevice(), script)
    drained = script.receive

    def receive(timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        assert script.core is not None
        if not script.turns:
            script.core.drain(0.0)
        return drained(timeout_s)

    script.receive = receive  # type: ignore[method-assign]
    script.core.run()
    [failed] = script.of(wire.Failed)
    assert isinstance(failed, wire.Failed)
    assert (failed.handles, failed.code) == ([0], "draining")


def test_a_step_that_raises_has_last_words() -> None:
    def broken(request: Request) -> int:
        if request.out_len == 2:
            raise FloatingPointError("the device is on fire")
        return echo(request)

    script = Script([HELLO], [generate()])
    script.core, _ = engine(MadeUpDevice(broken), script)
    with pytest.raises(FloatingPointError):
        script.core.run()
    assert script.events[-1] == wire.Dying(3, "FloatingPointError: the device is on fire")


def test_a_long_step_is_announced() -> None:
    script = Script([HELLO], [generate()])
    script.core, _ = engine(None, script)
    script.core._step_time = StepTime(10.0, 0.0)
    script.core.run()
    leases = [event.next_due_s for event in script.events if isinstance(event, wire.Step)]
    assert max(leases) > 40
    assert leases[-1] == 3.0


def test_an_idle_engine_waits_and_a_busy_one_does_not() -> None:
    script = said([], [HELLO], [generate()], [])
    assert script.waits[:4] == [1.0, 1.0, 1.0, 0.0]


def test_step_time_learns_from_small_and_large_steps_apart() -> None:
    times = StepTime(0.001, 0.001)
    for _ in range(100):
        times.observe(1, 0.01)
        times.observe(1000, 0.5)
    assert times.expect(1) == pytest.approx(0.01, rel=0.01)
    assert times.expect(2000) == pytest.approx(1.0, rel=0.01)


# ---------------------------------------------------------------------------------------------------- cancel


def cancelled(script: Script) -> list[tuple[str, bool]]:
    return [(event.rid, event.found) for event in script.events if isinstance(event, wire.Cancelled)]


def failures(script: Script) -> list[tuple[list[int], str]]:
    return [(sorted(event.handles), event.code) for event in script.events if isinstance(event, wire.Failed)]


def test_a_running_request_is_cancelled_whole_and_nothing_follows() -> None:
    script = said([HELLO], [generate(0, max_tokens=100, n=2)], [], [], [wire.Cancel("r0")])
    assert cancelled(script) == [("r0", True)]
    assert failures(script) == [([0, 1], "request_cancelled")]
    told = next(index for index, event in enumerate(script.events) if isinstance(event, wire.Failed))
    assert not any(event.deltas for event in script.events[told:] if isinstance(event, wire.Step))
    assert 1 <= len(tokens_of(script, 0)) < 5
    assert script.core is not None
    assert script.core._scheduler.pool.used == 0
    [*_, last] = script.of(wire.Metrics)
    assert isinstance(last, wire.Metrics)
    assert last.metrics.finished == {"stop": 0, "length": 0, "abort": 2, "error": 0}


def test_its_blocks_are_free_in_the_turn_of_the_loop_that_hears_of_it() -> None:
    """The other request needs them all."""
    script = Script(
        [HELLO], [generate(0, max_tokens=100)], [], [generate(1, prompt=(1,) * 150)], [], [wire.Cancel("r0")]
    )
    script.core, _ = engine(None, script)
    scheduler = script.core._scheduler
    receive, running = script.receive, []

    def watched(timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        running.append([request.rid for request in scheduler.running])
        return receive(timeout_s)

    script.receive = watched  # type: ignore[method-assign]
    script.core.run()
    assert running[5:7] == [["r0"], ["r1"]]
    assert failures(script) == [([0], "request_cancelled")]
    assert len(tokens_of(script, 1)) == 4


def test_a_queued_request_is_cancelled_before_it_runs() -> None:
    running = [generate(handle, max_tokens=20) for handle in range(4)]
    script = said([HELLO], [*running, generate(4)], [], [wire.Cancel("r4")])
    assert cancelled(script) == [("r4", True)]
    assert failures(script) == [([4], "request_cancelled")]
    assert tokens_of(script, 4) == []
    assert all(len(tokens_of(script, handle)) == 20 for handle in range(4))


@pytest.mark.parametrize("cancel", [wire.Cancel("r1"), wire.Cancel("r0", b"other"), wire.Cancel("r0")])
def test_unknown_foreign_and_finished_requests_are_not_found(cancel: wire.Cancel) -> None:
    """The last of these finds a request of a key, and shows none."""
    script = said([HELLO], [generate(0, key=b"mine")], [cancel], [], [], [], [], [wire.Cancel("r0", b"mine")])
    assert cancelled(script) == [(cancel.rid, False), ("r0", False)]
    assert failures(script) == []
    assert len(tokens_of(script)) == 4


def test_the_asker_need_not_be_the_reader() -> None:
    script = Script([HELLO], [generate(0, max_tokens=100)], [])
    script.core, _ = engine(None, script)
    sent: list[tuple[bytes, wire.Event]] = []
    receive, send, asked = script.receive, script.send, False

    def receiving(timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        nonlocal asked
        if script.turns or asked:
            return receive(timeout_s)
        asked = True
        return [(b"other", wire.Hello(wire.PROTOCOL_VERSION, b"g" * 16, b"c" * 16)), (b"other", wire.Cancel("r0"))]

    def sending(peer: bytes, event: wire.Event) -> Sent:
        sent.append((peer, event))
        return send(peer, event)

    script.receive, script.send = receiving, sending  # type: ignore[method-assign]
    script.core._delivery._send = sending
    script.core.run()
    told = [(peer, type(event)) for peer, event in sent if isinstance(event, wire.Cancelled | wire.Failed)]
    assert told == [(b"other", wire.Cancelled), (PEER, wire.Failed)]


def test_a_request_is_cancelled_before_its_grammar_is_compiled() -> None:
    command = generate(0, key=b"mine")
    grammar = Grammar(GrammarKind.REGEX, "[a-z]+")
    command = msgspec.structs.replace(command, sampling=msgspec.structs.replace(command.sampling, grammar=grammar))
    cancels = [wire.Cancel("r0", b"other"), wire.Cancel("r0", b"mine"), wire.Cancel("r0", b"mine")]
    script = Script([HELLO], [command, *cancels])
    script.core, _ = engine(None, script)
    script.core._grammars = Grammars(card(tokenizer=b"{}"), 4)
    script.core.run()
    assert cancelled(script) == [("r0", False), ("r0", True), ("r0", False)]
    assert [(event.rid, event.code) for event in script.events if isinstance(event, wire.Rejected)] == [
        ("r0", "request_cancelled")
    ]
    assert script.of(wire.Accepted) == []
