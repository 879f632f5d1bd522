"""Who waits for which grammar, and what is remembered of it: with processes that do what the test says."""

import subprocess
import sys

import pytest

from engine_core.grammar import bounds
from engine_core.grammar.admission import Admission
from engine_core.grammar.pool import Pool
from engine_core.grammar.processes import LOST
from protocol import messages as wire
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from protocol.tokens import pack
from protocol.validate import InvalidRequest
from tests.engine_core.grammar.scripted import Scripted

PEER = b"peer"
SIGXCPU, SIGALRM, SIGABRT = -24, -14, -6


class Desk:
    """An Admission, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.processes = Scripted()
        self.processes.fork(Grammar(GrammarKind.REGEX, "the first one compiles at once"))
        self.admission = Admission(Pool(self.processes), lambda: self.now_s)

    def ask(self, text: str, handles: tuple[int, ...] = (0,), peer: bytes = PEER) -> bool:
        return self.admission.passed(peer, command(text, handles))

    def settled(self) -> list[wire.Generate | wire.Abort]:
        return [said for _, said in self.admission.settled({PEER}, draining=False)]

    def refusal(self, text: str) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as caught:
            self.ask(text)
        return caught.value


def command(text: str, handles: tuple[int, ...] = (0,)) -> wire.Generate:
    sampling = SamplingParams(max_tokens=9, grammar=Grammar(GrammarKind.REGEX, text, "tools"))
    return wire.Generate(1, text, [pack([1])], [wire.Sequence(handle, 0) for handle in handles], sampling, 0)


def test_a_request_without_a_grammar_passes() -> None:
    plain = wire.Generate(1, "r", [pack([1])], [wire.Sequence(0, 0)], SamplingParams(max_tokens=9), 0)
    assert Desk().admission.passed(PEER, plain)


def test_one_is_compiled_at_a_time_in_the_order_of_arrival() -> None:
    desk = Desk()
    assert not any([desk.ask("a"), desk.ask("b"), desk.ask("a")])
    assert desk.settled() == []
    [_, first] = desk.processes.forked
    assert first.grammar.text == "a"
    first.compiled = True
    assert [said.rid for said in desk.settled() if isinstance(said, wire.Generate)] == ["a", "a"]
    assert desk.ask("a")
    assert desk.admission.waiting == 1
    desk.settled()
    [*_, second] = desk.processes.forked
    assert second.grammar.text == "b"


def test_a_refusal_is_remembered() -> None:
    desk = Desk()
    desk.ask("a")
    desk.settled()
    desk.processes.forked[-1].refusal = "It is wrong."
    assert desk.settled() == [command("a")]
    desk.now_s = 1e9
    assert (desk.refusal("a").message, desk.refusal("a").param) == ("It is wrong.", "tools")


@pytest.mark.parametrize(
    ("code", "words"),
    [(SIGXCPU, "longer than 2 s"), (SIGALRM, "longer than 10 s"), (SIGABRT, "more than 512 MiB")],
)
def test_a_limit_that_was_exceeded_is_remembered_for_a_while(code: int, words: str) -> None:
    desk = Desk()
    desk.ask("a")
    desk.settled()
    desk.processes.forked[-1].code = code
    assert desk.settled() == [command("a")]
    assert words in desk.refusal("a").message
    assert desk.refusal("a").code == "invalid_request_error"
    desk.now_s = bounds.REFUSED_S
    assert not desk.ask("a")


def test_a_process_lost_from_outside_is_tried_once_more() -> None:
    desk = Desk()
    desk.ask("a")
    desk.settled()
    desk.processes.forked[-1].code = LOST
    assert desk.settled() == []
    assert len(desk.processes.forked) == 3
    desk.processes.forked[-1].code = LOST
    assert desk.settled() == [command("a")]
    assert desk.refusal("a").code == "internal_error"


def test_refusals_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "REFUSALS_MAX", 2)
    desk = Desk()
    for text in "abc":
        desk.ask(text)
        desk.settled()
        desk.processes.forked[-1].refusal = "no"
        desk.settled()
    assert not desk.ask("a")
    assert desk.refusal("c")


def test_who_is_aborted_does_not_come_back() -> None:
    desk = Desk()
    desk.ask("a", (1, 2))
    desk.ask("a", (3, 4))
    desk.admission.forget(b"another", [1, 2, 3, 4])
    desk.admission.forget(PEER, [1])
    desk.admission.forget(PEER, [2, 3])
    desk.settled()
    desk.processes.forked[-1].compiled = True
    assert desk.settled() == [command("a", (3, 4)), wire.Abort([3])]


def test_one_in_use_does_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FOLLOWERS_MAX", 1)
    desk = Desk()
    desk.ask("a")
    desk.settled()
    [_, process] = desk.processes.forked
    process.compiled = True
    desk.settled()
    process.users += 1
    desk.ask("b")
    desk.settled()
    assert len(desk.processes.forked) == 2
    process.users -= 1
    desk.settled()
    assert desk.processes.dropped == [process]
    assert desk.processes.forked[-1].grammar.text == "b"


def test_a_new_one_is_taken_before_it_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FOLLOWERS_MAX", 1)
    desk = Desk()
    desk.ask("a")
    desk.ask("b")
    for text in "ab":
        desk.settled()
        desk.processes.forked[-1].compiled = True
        assert desk.settled() == [command(text)]
        assert desk.ask(text), "what was compiled for it has made room for the next one already"


def test_any_number_may_wait_for_one_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "GRAMMARS_WAITING_MAX", 2)
    monkeypatch.setattr(bounds, "REQUESTS_WAITING_MAX", 5)
    desk = Desk()
    assert not any(desk.ask(text) for text in "abba")
    assert desk.refusal("c").code == "queue_full"
    assert not desk.ask("a")
    assert desk.refusal("a").code == "queue_full"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("engine_core.grammar.nursery", {"torch", "transformers", "numpy", "zmq"}),
        ("engine_core.grammar.grammars", {"llguidance", "torch"}),
    ],
)
def test_neither_side_loads_what_is_the_others(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & {name.partition(".")[0] for name in loaded.stdout.split()}
