"""Masks from another process say what llguidance accepts, token by token."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from engine_core.grammar.compiler import Compiler
from engine_core.grammar.messages import Order, Orders, Setup, State
from engine_core.grammar.processes import Process, Processes
from protocol.sampling import Grammar
from tests.engine_core.grammar.engine import EOS, TOKENIZER, WIDTH, choice, lark, regex, schema

SLOTS = 4
STEPS = 12
GRAMMARS = {
    "schema": schema(type="object", properties={"a": {"type": "string"}, "b": {"type": "number"}}, required=["b"]),
    "any json": schema(),
    "regex": regex(r"(\w{1,4} ?){2,5}é*"),
    "choice": choice("yes", "no", "nobody", "é😀"),
    "lark": lark('start: "[" item ("," item)* "]"\nitem: /[a-z]+/ | start'),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    processes = Processes(TOKENIZER, Setup(WIDTH, EOS, SLOTS))
    yield processes
    processes.close()


def compiled(processes: Processes, grammar: Grammar) -> Process:
    process = processes.fork(grammar)
    while not process.compiled:
        assert not process.spent, process.refusal
        processes.turn(10.0)
    return process


def answered(processes: Processes, process: Process, order: Order) -> State:
    processes.send(process, Orders([order]))
    while (answer := process.answers.get(order.slot)) is None or answer.ticket != order.ticket:
        assert process.code is None
        processes.turn(10.0)
    return answer.state


def allowed(process: Process, slot: int) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(process.masks[slot], bitorder="little")).tolist())


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_mask_is_what_the_matcher_accepts(processes: Processes, name: str) -> None:
    grammar = GRAMMARS[name]
    process = compiled(processes, grammar)
    matcher = Compiler(TOKENIZER.decode(), WIDTH, EOS).compile(grammar)
    noise = random.Random(name)
    tokens: list[int] = []
    for ticket in range(1, STEPS):
        slot = ticket % SLOTS  # a sequence that moves about begins anew, with all that it has
        state = answered(processes, process, Order(slot, True, tokens, ticket))
        assert (state in (State.SENTENCE, State.COMPLETE)) == matcher.is_accepting()
        accepted = {token for token in range(WIDTH) if token not in EOS and matcher.validate_tokens([token])}
        mask = allowed(process, slot)
        if state is State.COMPLETE:
            assert mask == set()
            break
        # Text that can only go on in one way is spelt as the tokenizer spells it, and in no other.
        assert mask == accepted or (len(mask) == 1 and mask < accepted)
        tokens.append(noise.choice(sorted(mask)))
        assert matcher.consume_token(tokens[-1])


def test_slots_are_told_apart(processes: Processes) -> None:
    process = compiled(processes, regex("(ab|cd)+"))
    by_text = {}
    for token in sorted(allowed_at_start(processes, process)):
        answered(processes, process, Order(0, True, [], 101 + token))
        answered(processes, process, Order(1, True, [token], 5001 + token))
        answered(processes, process, Order(0, False, [token], 9001 + token))
        by_text[token] = allowed(process, 0)
        assert by_text[token] == allowed(process, 1)
    assert len({frozenset(mask) for mask in by_text.values()}) > 1


def allowed_at_start(processes: Processes, process: Process) -> set[int]:
    answered(processes, process, Order(0, True, [], 100))
    return allowed(process, 0)


def test_tokens_of_a_long_replay_come_in_pieces(processes: Processes) -> None:
    process = compiled(processes, regex("a*"))
    token = max(allowed_at_start(processes, process))
    processes.send(process, Orders([Order(2, True, [token] * 5000)]))
    processes.send(process, Orders([Order(2, False, [token] * 5000)]))
    assert answered(processes, process, Order(2, False, [token], 1)) is State.SENTENCE


def test_a_broken_sequence_breaks_no_other(processes: Processes) -> None:
    process = compiled(processes, regex("[ab]{9}"))
    token = min(allowed_at_start(processes, process))
    assert answered(processes, process, Order(1, True, [WIDTH - 1], 1)) is State.BROKEN
    assert "can't" not in process.answers[1].message
    assert answered(processes, process, Order(2, True, [token], 2)) is State.OPEN
    assert answered(processes, process, Order(1, True, [token], 3)) is State.OPEN
    assert allowed(process, 1) == allowed(process, 2)
