import pytest

from engine_core.delivery import NOTICES_MAX, Delivery
from engine_core.request import Request
from protocol.channel import Sent
from protocol.messages import Accepted, Event, FinishReason, Load, Step
from protocol.sampling import SamplingParams

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
    request.tokens += tokens
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
