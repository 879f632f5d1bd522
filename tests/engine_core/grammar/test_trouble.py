"""Grammars that are too much, processes that die, clients that leave: it is nobody's affair but the one request's."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine_core.grammar import bounds
from protocol import messages as wire
from protocol.sampling import Grammar, GrammarKind
from protocol.tokens import pack
from tests.engine_core.grammar.engine import DEADLINE_S, EPOCH, Engine, Reply, choice, encode, lark, regex, schema
from tests.engine_core.grammar.processes import children, followers, is_alive, nursery

# Some of these end at one of llguidance's own limits, some only at a clock.
ENDLESS = schema(
    type="object",
    patternProperties={f"^{i}[a-z]{{1,{i + 2}}}(x|y)*(a|b)*a(a|b){{{i % 15}}}$": {} for i in range(700)},
)
SLOW_MASK = lark(
    "start: a\n"
    + "\n".join(
        f"{rule}: " + " | ".join(f"{left} {right}" for left in "abcdefghij" for right in "abcdefghij") + " | /[a-z]/"
        for rule in "abcdefghij"
    )
)
BOMBS = {
    "intersections": schema(
        allOf=[{"anyOf": [{"properties": {f"p{i}_{j}": {"type": "integer"}}} for j in range(8)]} for i in range(8)]
    ),
    "patterns": schema(
        anyOf=[{"type": "string", "pattern": f"^.*{chr(97 + i % 26)}.{{{i + 1}}}$"} for i in range(200)]
    ),
    "repeated regex": regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    "both regexes": lark("start: T\nT: /(a|b)*a(a|b){12}/ & /(a|b)*b(a|b){13}/ & ~/.*(aa|bb){9}.*/"),
    "rules without an end": lark("start: start"),
    "rules in a circle": schema(**{"$ref": "#"}),
    "rules doubled": lark(
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"'
    ),
    "no end of compiling": ENDLESS,
    "no end of a mask": SLOW_MASK,
}
HARMLESS = {
    "many items": schema(type="array", items={"type": "integer"}, minItems=10**7),
    "a long string": schema(type="string", minLength=10**6),
    "a repeated regex": regex("(a{1,1000}){1,1000}"),
    "deep": schema(**{"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def plain(engine: Engine) -> Reply:
    """A stream that should notice nothing: it takes longer than any grammar is given."""
    return engine.ask(None, max_tokens=450, ignore_eos=True, temperature=1.0)


@contextmanager
def stream_beside(engine: Engine) -> Iterator[Reply]:
    """A stream that has begun; at the end it must have gone on."""
    stream = plain(engine)
    engine.until(lambda: len(stream.tokens) > 2)
    before = len(stream.tokens)
    yield stream
    engine.until(lambda: len(stream.tokens) > before + 2)
    engine.tell(wire.Abort([stream.handle]))


def refusal(reply: Reply) -> str:
    assert isinstance(reply.answer, wire.Rejected), reply.answer
    assert (reply.answer.code, reply.answer.param) == ("invalid_request_error", "structured_outputs")
    return reply.answer.message


def slow(name: str) -> Grammar:
    """Takes as long as it may; a different one for each name."""
    return Grammar(ENDLESS.kind, ENDLESS.text.replace("^0[a-z]", f"^{name}[a-z]"))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_and_streams_go_on(engine: Engine, name: str) -> None:
    with stream_beside(engine):
        reply = engine.ask(BOMBS[name])
        engine.wait(reply)
        assert re.search("enforced|followed|takes", refusal(reply))
    after = engine.ask(choice("fine"))
    engine.wait(after)
    assert after.text == "fine"


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_a_bomb_is_served(engine: Engine, name: str) -> None:
    reply = engine.ask(HARMLESS[name], max_tokens=20)
    engine.wait(reply)
    assert reply.finish is not None


def test_streams_go_on_while_a_grammar_is_compiled(engine: Engine) -> None:
    with stream_beside(engine) as stream:
        before = len(stream.tokens)
        reply = engine.ask(slow("beside"))
        engine.until(lambda: len(stream.tokens) > before + 3)
        assert reply.answer is None
        engine.wait(reply)
        assert refusal(reply)


def test_a_bomb_is_not_tried_twice(engine: Engine) -> None:
    engine.wait(engine.ask(ENDLESS))
    forked = engine.grammars.pool.processes._number
    again = engine.ask(ENDLESS)
    engine.wait(again)
    assert "takes longer than" in refusal(again)
    assert engine.grammars.pool.processes._number == forked


def test_the_size_has_a_limit(engine: Engine) -> None:
    reply = engine.ask(regex("é" * 40_000))
    engine.wait(reply)
    assert "80000 bytes, at most 65536" in refusal(reply)


def test_the_largest_grammar_is_served(engine: Engine) -> None:
    remark = "// " + "x" * 65_000
    reply = engine.ask(Grammar(GrammarKind.LARK, f'start: "yes"\n{remark}', frame=f"start: answer\n{remark}"))
    engine.wait(reply)
    assert reply.text == "yes"
    reply = engine.ask(Grammar(GrammarKind.LARK, 'start: "yes"', frame=remark + "x" * 600))
    engine.wait(reply)
    assert "65603 bytes, at most 65536" in refusal(reply)


FOLLOWER = """
import os, socket, sys
from engine_core.grammar import bounds, follower
from engine_core.grammar.compiler import Compiler
from engine_core.grammar.messages import Compile, Order, Orders, encode, socket_pair
from engine_core.tiny import MODEL_PATH
from protocol.sampling import Grammar, GrammarKind
{bounds}
ours, theirs = socket_pair()
compiler = Compiler((MODEL_PATH / "tokenizer.json").read_text(), 3072, [2])
ours.send(encode(Compile(Grammar(GrammarKind({kind}), {text!r}))))
ours.send(encode(Orders([Order(0, True, [], 1)])))
ours.shutdown(socket.SHUT_WR)
os.dup2(os.open(os.devnull, os.O_RDWR), 2)
code = follower.run(theirs, compiler, 4)
print(os.getpriority(os.PRIO_PROCESS, 0))
sys.exit(code)
"""
PLENTY = "bounds.COMPILE_BYTES, bounds.COMPILE_S, bounds.COMPILE_WALL_S = 2 << 30, 60, 60.0"
HUGE = regex(r"(?i)\p{L}" + r"\p{L}" * 9000)


def follow(grammar: Grammar, limits: str) -> subprocess.CompletedProcess[str]:
    """A follower's life, with limits of its own."""
    script = FOLLOWER.format(kind=int(grammar.kind), text=grammar.text, bounds=f"{PLENTY}\n{limits}")
    return subprocess.run(
        [sys.executable, "-c", script], timeout=DEADLINE_S, check=False, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("grammar", "limit", "end"),
    [
        (HUGE, "bounds.COMPILE_BYTES = 32 << 20", signal.SIGABRT),
        (ENDLESS, "bounds.COMPILE_S = 1", signal.SIGXCPU),
        (ENDLESS, "bounds.COMPILE_WALL_S = 0.2", signal.SIGALRM),
    ],
)
def test_compiling_has_limits(grammar: Grammar, limit: str, end: int) -> None:
    assert follow(grammar, limit).returncode == -end


@pytest.mark.parametrize(("mask_s", "heavy_s", "last"), [(0.0, -1.0, True), (60.0, -1.0, False), (0.0, 60.0, False)])
def test_who_takes_much_of_the_processor_comes_last(mask_s: float, heavy_s: float, last: bool) -> None:
    ended = follow(regex("[a-z]+"), f"bounds.HEAVY_MASK_CPU_S, bounds.HEAVY_CPU_S = {mask_s}, {heavy_s}")
    priority = 19 if last else os.getpriority(os.PRIO_PROCESS, 0)
    assert (ended.returncode, ended.stdout) == (0, f"{priority}\n")


# --------------------------------------------------------------------------------------------------------- deaths


def wait_for(engine: Engine, number: int) -> list[int]:
    """Until so many followers live."""
    engine.until(lambda: len(followers(engine)) == number)
    return followers(engine)


def test_a_compiler_that_is_killed_is_replaced_once() -> None:
    with Engine() as engine, stream_beside(engine):
        reply = engine.ask(ENDLESS)
        [first] = wait_for(engine, 1)
        os.kill(first, signal.SIGKILL)
        engine.until(lambda: followers(engine) not in ([], [first]))
        [second] = followers(engine)
        os.kill(second, signal.SIGKILL)
        engine.wait(reply)
        assert isinstance(reply.answer, wire.Rejected)
        assert reply.answer.code == "internal_error"
        after = engine.ask(choice("fine"))
        engine.wait(after)
        assert after.text == "fine"


@pytest.mark.parametrize("victim", ["follower", "nursery"])
def test_a_stream_outlives_its_process(victim: str) -> None:
    grammar = regex("[a-z]{120,130}")
    with Engine() as engine:
        undisturbed = engine.ask(grammar, seed=3)
        engine.wait(undisturbed)
    with Engine() as engine:
        streams = [engine.ask(grammar, seed=3), engine.ask(grammar, seed=4)]
        engine.until(lambda: len(streams[0].tokens) > 5)
        os.kill(nursery(engine) if victim == "nursery" else followers(engine)[0], signal.SIGKILL)
        engine.wait(*streams)
        assert streams[0].tokens == undisturbed.tokens
        assert re.fullmatch("[a-z]{120,130}", streams[1].text)


def test_a_mask_that_does_not_come_keeps_nobody_else_waiting() -> None:
    grammar = regex("[a-z]{120,130}")
    with Engine() as engine:
        undisturbed = engine.ask(grammar, seed=3)
        engine.wait(undisturbed)
        held = engine.ask(grammar, seed=3)
        engine.until(lambda: len(held.tokens) > 3)
        [follower] = followers(engine)
        os.kill(follower, signal.SIGSTOP)
        with stream_beside(engine) as stream:
            engine.until(lambda: len(stream.tokens) > 20)
            stuck = len(held.tokens)
            engine.until(lambda: len(stream.tokens) > 60)
            assert len(held.tokens) == stuck
        os.kill(follower, signal.SIGCONT)
        engine.wait(held)
        assert held.tokens == undisturbed.tokens


ORPHANS = """
import sys, time
from engine_core.grammar.messages import Setup
from engine_core.grammar.processes import Processes
from engine_core.tiny import MODEL_PATH
from protocol.sampling import Grammar, GrammarKind
processes = Processes((MODEL_PATH / "tokenizer.json").read_bytes(), Setup(3072, [2], 4))
process = processes.fork(Grammar(GrammarKind.REGEX, "a"))
while not process.compiled:
    processes.turn(1.0)
print(processes.nursery_pid, flush=True)
time.sleep(600)
"""


def test_no_process_outlives_the_engine() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        found = int(parent.stdout.readline())
        family = [found, *children(found)]
        assert len(family) == 2
        parent.kill()
    deadline_s = time.monotonic() + DEADLINE_S
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline_s, "still there"
        time.sleep(0.01)


def test_closing_ends_all() -> None:
    with Engine() as engine:
        engine.wait(engine.ask(choice("a", "b")), engine.ask(choice("c", "d")))
        family = [nursery(engine), *followers(engine)]
        assert len(family) == 3
    deadline_s = time.monotonic() + DEADLINE_S
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline_s, "still there"
        time.sleep(0.01)


# --------------------------------------------------------------------------------------------- waiting for the compiler


def test_an_abort_is_heard_while_the_grammar_is_compiled(engine: Engine) -> None:
    gone = engine.ask(slow("abort"))
    engine.until(lambda: engine.grammars.admission.waiting == 1)
    engine.tell(wire.Abort([gone.handle]))
    engine.until(lambda: engine.grammars.admission.waiting == 0)
    after = engine.ask(choice("fine"))
    engine.wait(after)
    assert gone.answer is None


def test_a_frontend_that_leaves_is_forgotten(engine: Engine) -> None:
    other = b"other"
    engine.tell(wire.Hello(wire.PROTOCOL_VERSION, b"g" * 16, b"b" * 16), other)
    engine.ask(slow("first"))
    gone = engine.ask(slow("leaving"), peer=other)
    engine.until(lambda: engine.grammars.admission.waiting == 2)
    engine.tell(wire.Hello(wire.PROTOCOL_VERSION, b"g" * 16, b"c" * 16), b"again")
    after = engine.ask(choice("fine"))
    engine.wait(after)
    assert gone.answer is None


def test_a_part_of_a_request_may_be_aborted_while_it_waits(engine: Engine) -> None:
    blocking = engine.ask(slow("blocking"))
    engine.until(lambda: engine.grammars.admission.waiting == 1)
    kept, gone = engine.expect(), engine.expect()
    sequences = [wire.Sequence(kept.handle, 0), wire.Sequence(gone.handle, 0, 1)]
    sampling = wire.SamplingParams(max_tokens=50, grammar=regex("[ab]{40}"))
    engine.tell(wire.Generate(EPOCH, kept.rid, [pack(encode("x"))], sequences, sampling, 0))
    engine.until(lambda: engine.grammars.admission.waiting == 2)
    engine.tell(wire.Abort([gone.handle]))
    engine.until(lambda: kept.finish is not None)
    assert gone.tokens == []
    assert blocking.over


def test_a_drain_answers_those_who_wait() -> None:
    with Engine() as engine:
        waiting = [engine.ask(slow("a")), engine.ask(slow("b"))]
        engine.until(lambda: engine.grammars.admission.waiting == 2)
        engine.core.drain(60.0)
        engine.wait(*waiting)
        assert {reply.answer.code for reply in waiting if isinstance(reply.answer, wire.Rejected)} == {"draining"}


def test_those_who_wait_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "GRAMMARS_WAITING_MAX", 3)
    with Engine() as engine:
        waiting = [engine.ask(slow(name)) for name in "abcde"]
        engine.wait(*waiting[3:])
        codes = [reply.answer.code for reply in waiting[3:] if isinstance(reply.answer, wire.Rejected)]
        assert codes == ["queue_full", "queue_full"]
        assert all(reply.answer is None for reply in waiting[:3])


def test_processes_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FOLLOWERS_MAX", 2)
    with Engine() as engine:
        for text in "abcdef":
            reply = engine.ask(choice(text, text * 2))
            engine.wait(reply)
            assert reply.finish is not None
        wait_for(engine, 2)


def test_who_finds_no_process_waits_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FOLLOWERS_MAX", 1)
    with Engine() as engine:
        long = engine.ask(regex("[a-z]{120,130}"))
        engine.until(lambda: long.answer is not None)
        waiting = engine.ask(choice("next"))
        engine.wait(long, waiting)
        assert waiting.text == "next"


def test_a_model_without_a_usable_tokenizer_refuses_all(engine: Engine) -> None:
    for text in (b"", b'{"version": "1.0"}'):
        with Engine(card=wire.ModelCard("m", 0, text, b"", None, {}, [2], 3100, 512)) as bare:
            reply = bare.ask(choice("yes"))
            bare.wait(reply)
            assert "can't be held to a grammar" in refusal(reply)
            free = bare.ask(None, max_tokens=3, ignore_eos=True)
            bare.wait(free)
            assert len(free.tokens) == 3
