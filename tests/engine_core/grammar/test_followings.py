"""Who is asked for what, and what a death means to whom: with processes that do what the test says."""

import pytest

from engine_core.grammar import bounds, followings
from engine_core.grammar.followings import Followings
from engine_core.grammar.messages import TOKENS_PER_FRAME, WORN_OUT, Release, State
from engine_core.grammar.pool import Pool
from engine_core.grammar.processes import LOST
from engine_core.request import NO_SLOT, Request
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from tests.engine_core.grammar.scripted import BYTES, Scripted

GRAMMAR = Grammar(GrammarKind.REGEX, "a")
SIGPROF = -27


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setattr(bounds, "PATIENCE_S", 0.0)
    return Scripted()


def running(processes: Scripted, count: int = 1) -> tuple[Followings, list[Request]]:
    """Requests in slots of their own, whose masks are asked for."""
    found = Followings(Pool(processes))
    sampling = SamplingParams(max_tokens=99, grammar=GRAMMAR)
    requests = [Request(handle, "r", [1, 2, 3], sampling) for handle in range(count)]
    found.follow(requests)
    for slot, request in enumerate(requests):
        request.slot = slot
        found.open(request)
    return found, requests


def test_a_mask_that_is_there_is_given(processes: Scripted) -> None:
    found, [request] = running(processes)
    processes.forked[0].masks[0] = 255
    processes.answer(request, State.SENTENCE)
    [mask] = found.wait([request])
    assert mask is not None
    assert mask.may_end
    assert mask.bits.tolist() == [255] * BYTES


def test_a_late_mask_misses_the_step_and_no_further_one(processes: Scripted) -> None:
    found, [request] = running(processes)
    assert found.wait([request]) == [None]
    assert request.held
    assert found.concluded() == []
    assert request.held
    processes.answer(request)
    assert found.concluded() == []
    assert not request.held
    request.tokens.append(7)
    found.advance([request])
    assert request.held, "once late, it is only scheduled when its mask is there"
    before = processes.turns
    found.wait([request])
    assert processes.turns == before, "and nobody waits for it again"


def test_each_token_goes_out_once(processes: Scripted) -> None:
    found, requests = running(processes, 2)
    for token in (7, 8):
        for request in requests:
            request.tokens.append(token)
        found.advance(requests)
    assert [(order.slot, order.fresh, order.tokens) for order in processes.orders(processes.forked[0])] == [
        (0, True, []),
        (1, True, []),
        (0, False, [7]),
        (1, False, [7]),
        (0, False, [8]),
        (1, False, [8]),
    ]
    assert len(processes.sent) == 4, "one message for all of one follower"


def test_a_preempted_request_begins_anew_elsewhere(processes: Scripted) -> None:
    found, [request, other] = running(processes, 2)
    request.tokens.extend([7, 8])
    found.advance([request])
    request.slot = NO_SLOT
    found.concluded()
    assert isinstance(processes.sent[-1][1], Release)
    request.slot = 2
    found.open(request)
    order = processes.orders(processes.forked[0])[-1]
    assert (order.slot, order.fresh, order.tokens) == (2, True, [7, 8])
    processes.answer(other)
    assert found.wait([request, other])[1] is not None


def test_a_slot_that_changes_hands_within_a_step_is_not_released_from_under_the_next(processes: Scripted) -> None:
    found, [request, other] = running(processes, 2)
    request.slot, other.slot = NO_SLOT, 0
    found.open(other)
    before = len(processes.sent)
    found.concluded()
    assert processes.sent[before:] == []
    processes.answer(other)
    assert found.wait([other])[0] is not None


def test_one_that_ended_is_let_go(processes: Scripted) -> None:
    found, [request] = running(processes)
    request.ended = True
    found.advance([request])
    assert found.concluded() == []
    assert processes.forked[0].users == 0
    assert found.concluded() == []


def test_complete_and_broken_ones_conclude(processes: Scripted) -> None:
    found, [complete, broken] = running(processes, 2)
    processes.answer(complete, State.COMPLETE)
    processes.answer(broken, State.BROKEN)
    assert found.wait([complete, broken]) == [None, None]
    [(first, success), (second, failure)] = found.concluded()
    assert (first, success, second) == (complete, None, broken)
    assert failure is not None
    assert failure[0] == "invalid_request_error"
    assert "why" in failure[1]


def test_the_one_that_killed_its_follower_fails_and_the_others_move(processes: Scripted) -> None:
    found, [innocent, guilty] = running(processes, 2)
    innocent.tokens.append(7)
    found.advance([innocent])
    processes.die(SIGPROF, guilty)
    [(request, failure)] = found.concluded()
    assert request is guilty
    assert failure is not None
    assert "0.25 s for a single token" in failure[1]
    assert innocent.held
    successor = processes.forked[1]
    successor.compiled = True
    guilty.ended = True
    assert found.concluded() == []
    [order] = processes.orders(successor)
    assert (order.slot, order.fresh, order.tokens) == (0, True, [7])
    processes.answer(innocent)
    assert found.concluded() == []
    assert not innocent.held


@pytest.mark.parametrize("code", [LOST, WORN_OUT, 1])
def test_a_death_from_outside_is_nobodys_fault_for_a_while(processes: Scripted, code: int) -> None:
    found, [request] = running(processes)
    for _ in range(bounds.REOPENED_MAX):
        processes.die(code, request)
        assert found.concluded() == []
        processes.forked[-1].compiled = True
        found.concluded()
    processes.die(code, request)
    assert found.concluded() == [(request, ("internal_error", followings.LOST))]


def test_a_token_in_flight_while_the_successor_compiles_goes_out_with_the_others(processes: Scripted) -> None:
    found, [request] = running(processes)
    processes.die(LOST)
    found.concluded()
    request.tokens.append(7)
    found.advance([request])
    assert processes.orders(processes.forked[1]) == []
    assert request.held
    processes.forked[1].compiled = True
    found.concluded()
    assert [(order.fresh, order.tokens) for order in processes.orders(processes.forked[1])] == [(True, [7])]
    assert not request.held


def test_a_successor_that_refuses_fails_all(processes: Scripted) -> None:
    found, requests = running(processes, 2)
    processes.die(LOST)
    found.concluded()
    processes.forked[1].refusal = "The grammar is no good any more."
    assert {failure for _, failure in found.concluded()} == {
        ("invalid_request_error", "The grammar is no good any more.")
    }
    assert len(processes.forked) == 2
    assert requests


def test_a_long_replay_goes_out_in_pieces(processes: Scripted) -> None:
    found = Followings(Pool(processes))
    out = list(range(TOKENS_PER_FRAME * 2 + 5))
    request = Request(0, "r", [1], SamplingParams(max_tokens=10**6, grammar=GRAMMAR), out=out)
    found.follow([request])
    request.slot = 3
    found.open(request)
    orders = processes.orders(processes.forked[0])
    assert [order.fresh for order in orders] == [True, False, False]
    assert [bool(order.ticket) for order in orders] == [False, False, True]
    assert [token for order in orders for token in order.tokens] == out
    assert len(processes.sent) == 3


def test_what_other_limits_leave_nothing_of_ends_or_fails(processes: Scripted) -> None:
    found, [may_end, may_not] = running(processes, 2)
    processes.answer(may_end, State.SENTENCE)
    processes.answer(may_not, State.OPEN)
    found.exhausted(may_end)
    found.exhausted(may_not)
    assert found.concluded() == [(may_end, None), (may_not, ("invalid_request_error", followings.CONFLICT))]
