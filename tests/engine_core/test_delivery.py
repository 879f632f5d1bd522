import pytest

from engine_core.delivery import NOTICES_MAX, Delivery
from engine_core.request import Request
from protocol.channel import Sent
from protocol.messages import Accepted, Event, Failed, FinishReason, Load, Step
from protocol.sampling import SamplingParams
from tests.engine_core.paged_memory import scores

PEER = b"peer"


class Wire:
    """Takes events, or refuses them."""

    def __init__(self) -> None:
        self.outcome = Sent.YES
        self.taken: list[Event] = []

    def __call__(self, peer: bytes, event: Event) -> Sent:
        if self.outcome is Sent.YES:
            self.taken.append(event)
        return self.outcome

    @property
    def deltas(self) -> list[tuple[int, int, list[int]]]:
        steps = [event for event in self.taken if isinstance(event, Step)]
        return [(delta.handle, delta.pos, delta.tokens) for step in steps for delta in step.deltas]


def connected() -> tuple[Wire, Delivery, Request]:
    line = Wire()
    delivery = Delivery(1, line)
    delivery.join(PEER, b"frontend")
    request = Request(4, "r", [1, 2], SamplingParams(max_tokens=9), owner=PEER)
    delivery.open([request])
    return line, delivery, request


def produce(delivery: Delivery, request: Request, *tokens: int) -> None:
    request.tokens.extend(tokens)
    delivery.mark([request])


def flush(delivery: Delivery, now_s: float = 0.1) -> list[Request]:
    return delivery.flush(1, 3.0, Load(), now_s)


def test_each_position_goes_out_once() -> None:
    line, delivery, request = connected()
    produce(delivery, request, 5)
    flush(delivery)
    produce(delivery, request, 6)
    flush(delivery)
    flush(delivery)
    assert line.deltas == [(4, 0, [5]), (4, 1, [6])]


def test_a_full_peer_gets_everything_at_once_later() -> None:
    line, delivery, request = connected()
    line.outcome = Sent.FULL
    for token in (5, 6, 7):
        produce(delivery, request, token)
        assert flush(delivery) == []
    line.outcome = Sent.YES
    flush(delivery)
    assert line.taken == [], "it is not asked again at once"
    flush(delivery, now_s=0.2)
    assert line.deltas == [(4, 0, [5, 6, 7])]


def test_what_has_piled_up_goes_out_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.delivery.STEP_NUMBERS", 10)
    line, delivery, first = connected()
    others = [Request(handle, "r", [1], SamplingParams(max_tokens=9), owner=PEER) for handle in (5, 6)]
    delivery.open(others)
    for request in (first, *others):
        produce(delivery, request, 7, 8, 9, 10)
    assert not delivery.settled
    flush(delivery)
    assert [len(step.deltas) for step in line.taken if isinstance(step, Step)] == [2, 1]
    assert delivery.settled


def test_a_finished_request_is_kept_until_its_end_is_taken() -> None:
    line, delivery, request = connected()
    line.outcome = Sent.FULL
    request.ended, request.finish = True, FinishReason.STOP
    produce(delivery, request, 5)
    flush(delivery)
    assert delivery.find(PEER, 4) is request
    line.outcome = Sent.YES
    flush(delivery, now_s=0.2)
    assert delivery.find(PEER, 4) is None
    last = line.taken[-1]
    assert isinstance(last, Step)
    assert last.deltas[0].finish is FinishReason.STOP
    assert last.deltas[0].first is not None


def test_a_replay_starts_where_its_frontend_is() -> None:
    line, delivery, _ = connected()
    replayed = Request(5, "r", [1], SamplingParams(max_tokens=9), owner=PEER, out=[7, 8])
    delivery.open([replayed])
    produce(delivery, replayed, 9)
    flush(delivery)
    assert line.deltas == [(5, 2, [9])]


def test_a_gone_peer_gives_its_requests_back() -> None:
    line, delivery, request = connected()
    produce(delivery, request, 5)
    line.outcome = Sent.GONE
    assert flush(delivery) == [request]
    assert delivery.frontends == {}


def test_a_heartbeat_finds_a_gone_peer_without_tokens() -> None:
    line, delivery, request = connected()
    line.outcome = Sent.GONE
    assert flush(delivery, now_s=0.5) == []
    assert flush(delivery, now_s=1.5) == [request]


def test_a_new_connection_of_the_same_frontend_orphans_the_old_one() -> None:
    _, delivery, request = connected()
    assert delivery.join(PEER, b"frontend") == []
    assert delivery.join(b"other", b"another frontend") == []
    assert delivery.join(b"peer again", b"frontend") == [request]
    assert set(delivery.frontends) == {b"other", b"peer again"}


def test_heartbeats_once_a_second_and_a_lease_at_once() -> None:
    line, delivery, _ = connected()
    for now_s in (1.0, 1.5, 1.9, 2.0):
        delivery.flush(1, 3.0, Load(), now_s)
    assert len(line.taken) == 2
    delivery.flush(1, 60.0, Load(), 2.1, announce=True)
    assert isinstance(line.taken[-1], Step)
    assert line.taken[-1].next_due_s == 60.0


def test_notices_come_before_tokens_and_are_bounded() -> None:
    line, delivery, request = connected()
    line.outcome = Sent.FULL
    for number in range(NOTICES_MAX + 5):
        delivery.notify(PEER, Accepted(1, str(number)))
    produce(delivery, request, 5)
    line.outcome = Sent.YES
    flush(delivery, now_s=0.2)
    assert len(line.taken) == NOTICES_MAX + 1
    assert isinstance(line.taken[-1], Step)


# ------------------------------------------------------------------------------------------------ of the prompt


def asking(handle: int = 5) -> Request:
    return Request(handle, "r", [1] * 20, SamplingParams(max_tokens=9, prompt_logprobs=0), owner=PEER)


def compute(delivery: Delivery, request: Request, positions: range) -> None:
    assert request.prompt_logprobs is not None
    request.prompt_logprobs.append(scores(positions))
    delivery.mark([request])


def spans(line: Wire) -> list[list[tuple[int, int, int]]]:
    """(handle, first prompt position, one behind the last) of each portion, step by step; tokens as (handle, 0, n)."""
    steps = [event for event in line.taken if isinstance(event, Step)]
    return [
        [(d.handle, d.prompt.pos, d.prompt.end) if d.prompt else (d.handle, 0, len(d.tokens)) for d in step.deltas]
        for step in steps
    ]


def test_a_prompt_s_log_goes_out_as_it_grows_and_once() -> None:
    line, delivery, _ = connected()
    request = asking()
    delivery.open([request])
    compute(delivery, request, range(1, 8))
    flush(delivery)
    compute(delivery, request, range(8, 20))
    produce(delivery, request, 7)
    flush(delivery)
    flush(delivery, now_s=0.2)
    assert spans(line) == [[(5, 1, 8)], [(5, 8, 20), (5, 0, 1)]]
    first = [delta.first for step in line.taken if isinstance(step, Step) for delta in step.deltas]
    assert [timing is not None for timing in first] == [False, False, True]
    assert delivery.settled


def test_a_slow_peer_gets_a_prompt_s_log_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.delivery.STEP_NUMBERS", 13)
    line, delivery, first = connected()
    request, late = asking(), asking(6)
    delivery.open([request, late])
    line.outcome = Sent.FULL
    produce(delivery, first, 1, 2, 3)
    for positions in (range(1, 4), range(4, 8), range(8, 20)):  # of 6, 8 and 24 numbers
        compute(delivery, request, positions)
        flush(delivery)
    produce(delivery, request, 7, 8)
    compute(delivery, late, range(1, 6))
    assert request.prompt_delivered == 0
    line.outcome = Sent.YES
    flush(delivery, now_s=0.2)
    assert spans(line) == [[(4, 0, 3), (5, 1, 4)], [(5, 4, 8)], [(5, 8, 20)], [(5, 0, 2), (6, 1, 6)]]
    assert delivery.settled
    assert (request.prompt_delivered, request.delivered, late.prompt_delivered) == (3, 2, 1)


def test_a_peer_that_fills_up_between_portions_misses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_core.delivery.STEP_NUMBERS", 13)
    line, delivery, _ = connected()
    request = asking()
    delivery.open([request])
    for positions in (range(1, 7), range(7, 13), range(13, 20)):
        compute(delivery, request, positions)
    outcomes = iter([Sent.YES, Sent.FULL, Sent.YES, Sent.FULL])
    taken = line.__call__

    def send(peer: bytes, event: Event) -> Sent:
        line.outcome = next(outcomes, Sent.YES)
        return taken(peer, event)

    delivery._send = send
    for now_s in (0.2, 0.4, 0.6):
        flush(delivery, now_s)
    assert spans(line) == [[(5, 1, 7)], [(5, 7, 13)], [(5, 13, 20)]]
    assert delivery.settled


# ------------------------------------------------------------------------------------------------ by request id


def sequence(handle: int, rid: str = "r", key: bytes = b"", owner: bytes = PEER) -> Request:
    return Request(handle, rid, [1], SamplingParams(max_tokens=9), owner=owner, key=key)


def test_sequences_are_found_by_their_request_s_id_and_key_alone() -> None:
    _, delivery, _ = connected()
    delivery.join(b"other", b"another frontend")
    mine = [sequence(5, "mine", b"k"), sequence(5, "mine", b"k", b"other")]
    delivery.open([*mine, sequence(6, "mine", b"another key"), sequence(7, "not mine", b"k")])
    assert set(delivery.named("mine", b"k")) == set(mine)
    assert delivery.named("mine", b"") == delivery.named("unknown", b"k") == []
    mine[0].ended = True
    assert delivery.named("mine", b"k") == mine[1:]


def test_a_request_has_no_name_once_it_is_closed_delivered_or_orphaned() -> None:
    _, delivery, first = connected()
    closed, delivered, orphaned = (
        sequence(5, "closed"),
        sequence(6, "delivered"),
        sequence(7, "orphaned", owner=b"other"),
    )
    delivery.join(b"other", b"another frontend")
    delivery.open([closed, delivered, orphaned])
    delivery.close(closed)
    delivered.ended, delivered.finish = True, FinishReason.STOP
    produce(delivery, delivered, 8)
    flush(delivery)
    delivery.leave(b"other")
    delivery.close(orphaned)  # as whoever ends orphans does
    assert delivery._named == {"r": {first}}


def fail(delivery: Delivery, request: Request) -> None:
    request.ended = True
    delivery.fail([request], "request_cancelled", "no more")


def test_a_failure_comes_behind_the_tokens_that_there_are() -> None:
    line, delivery, request = connected()
    line.outcome = Sent.FULL
    produce(delivery, request, 5, 6)
    flush(delivery)
    fail(delivery, request)
    flush(delivery)
    assert not delivery.settled
    line.outcome = Sent.YES
    flush(delivery, now_s=0.2)
    step, failed = line.taken
    assert line.deltas == [(4, 0, [5, 6])]
    assert isinstance(step, Step)
    assert failed == Failed(1, [4], "request_cancelled", "no more")
    assert delivery.settled
    assert delivery.find(PEER, 4) is None


def test_a_failure_without_tokens_is_told_alone_and_once() -> None:
    line, delivery, request = connected()
    fail(delivery, request)
    flush(delivery)
    flush(delivery, now_s=5.0)
    assert line.deltas == []
    assert [event for event in line.taken if isinstance(event, Failed)] == [
        Failed(1, [4], "request_cancelled", "no more")
    ]


def test_a_failure_that_does_not_fit_behind_its_tokens_is_kept() -> None:
    line, delivery, request = connected()
    produce(delivery, request, 5)
    fail(delivery, request)
    outcomes = iter([Sent.YES, Sent.FULL])
    taken = line.__call__

    def send(peer: bytes, event: Event) -> Sent:
        line.outcome = next(outcomes, Sent.YES)
        return taken(peer, event)

    delivery._send = send
    flush(delivery)
    assert not delivery.settled
    flush(delivery, now_s=0.2)
    assert [type(event) for event in line.taken] == [Step, Failed]


def test_a_failed_request_whose_reader_left_is_told_to_nobody() -> None:
    line, delivery, request = connected()
    fail(delivery, request)
    delivery.close(request)
    flush(delivery)
    assert not any(isinstance(event, Failed) for event in line.taken)
