import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from protocol import messages as wire
from protocol.channel import (
    RECEIVE_BYTES,
    BadEndpoint,
    ClientChannel,
    EndpointInUse,
    EngineChannel,
    Link,
    Sent,
    check_endpoint,
)
from protocol.tokens import pack
from tests.protocol.samples import COMMANDS, EVENTS, SAMPLING

DEADLINE_S = 10.0
HELLO = COMMANDS[0]


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/run/engine.sock"


@pytest.fixture
def engine(endpoint: str) -> Iterator[EngineChannel]:
    with EngineChannel(endpoint) as channel:
        yield channel


@pytest.fixture
def client(engine: EngineChannel) -> Iterator[ClientChannel]:
    channel = ClientChannel(engine.endpoint)
    yield channel
    channel.close()


def until_sent(client: ClientChannel, command: wire.Command) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not client.send(command):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def arrived(client: ClientChannel, count: int) -> list[wire.Event | Link]:
    """The next `count` things that come to the client."""
    found: list[wire.Event | Link] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += client.receive()
    return found


def commands(engine: EngineChannel, count: int) -> list[tuple[bytes, wire.Command]]:
    found: list[tuple[bytes, wire.Command]] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += engine.receive(0.1)
    return found


def test_commands_down_events_up(engine: EngineChannel, client: ClientChannel) -> None:
    assert arrived(client, 1) == [Link.UP]
    for command in COMMANDS:
        assert client.send(command)
    received = commands(engine, len(COMMANDS))
    assert [command for _, command in received] == COMMANDS
    peer = received[0][0]
    for event in EVENTS:
        assert engine.send(peer, event) is Sent.YES
    assert arrived(client, len(EVENTS)) == EVENTS


def test_nothing_is_queued_for_an_engine_that_is_not_there(endpoint: str) -> None:
    client = ClientChannel(endpoint)
    assert not client.send(HELLO)
    client.close()


def test_an_unknown_peer_is_gone(engine: EngineChannel) -> None:
    assert engine.send(b"nobody", EVENTS[1]) is Sent.GONE


def test_a_peer_that_closed_is_gone(engine: EngineChannel) -> None:
    client = ClientChannel(engine.endpoint)
    until_sent(client, HELLO)
    [(peer, _)] = commands(engine, 1)
    client.close()
    deadline = time.monotonic() + DEADLINE_S
    while engine.send(peer, EVENTS[1]) is not Sent.GONE:
        assert time.monotonic() < deadline


def test_a_peer_that_takes_nothing_is_full_and_loses_nothing(engine: EngineChannel, client: ClientChannel) -> None:
    until_sent(client, HELLO)
    [(peer, _)] = commands(engine, 1)
    sent = 0
    while (outcome := engine.send(peer, wire.Accepted(1, f"{sent}-" + "x" * 100))) is Sent.YES:
        sent += 1
        assert sent < 1_000_000
    assert outcome is Sent.FULL
    received = [event.rid.split("-")[0] for event in arrived(client, sent + 1) if isinstance(event, wire.Accepted)]
    assert received == [str(number) for number in range(sent)]
    assert engine.send(peer, EVENTS[1]) is Sent.YES


def test_the_link_goes_down_with_the_engine_and_comes_back(endpoint: str) -> None:
    first = EngineChannel(endpoint)
    client = ClientChannel(endpoint)
    assert arrived(client, 1) == [Link.UP]
    first.close()
    assert arrived(client, 1) == [Link.DOWN]
    boot = client.boot
    client.reopen()
    assert client.boot != boot
    with EngineChannel(endpoint) as second:
        assert arrived(client, 1) == [Link.UP]
        assert client.send(HELLO)
        assert commands(second, 1)[0][1] == HELLO
    client.close()


def test_garbage_is_counted_and_dropped(engine: EngineChannel) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(engine.endpoint)
        for frames in ([b"\xc1"], [b"a", b"b"], [b""], [os.urandom(100)]):
            socket.send_multipart(frames)
        deadline = time.monotonic() + DEADLINE_S
        while engine.dropped < 4:
            assert engine.receive(0.1) == []
            assert time.monotonic() < deadline


def test_long_prompts_that_come_together_are_taken_one_step_at_a_time(
    engine: EngineChannel, client: ClientChannel
) -> None:
    prompt = pack([2**31 - 1] * (RECEIVE_BYTES // 8))
    sequences = [wire.Sequence(1, 0)]
    for number in range(5):
        until_sent(client, wire.Generate(1, str(number), [prompt], sequences, SAMPLING, 0))
    taken = []
    deadline = time.monotonic() + DEADLINE_S
    while len(taken) < 5:
        some = engine.receive(0.1)
        assert len(some) <= 2
        taken += [command.rid for _, command in some if isinstance(command, wire.Generate)]
        assert time.monotonic() < deadline
    assert taken == list("01234")


def test_one_engine_per_endpoint(engine: EngineChannel) -> None:
    with pytest.raises(EndpointInUse, match="another engine"):
        EngineChannel(engine.endpoint)


def test_a_stale_socket_file_is_no_obstacle(endpoint: str) -> None:
    EngineChannel(endpoint).close()
    Path(endpoint.removeprefix("ipc://")).touch()
    EngineChannel(endpoint).close()


def test_the_folder_is_private(engine: EngineChannel) -> None:
    folder = Path(engine.endpoint.removeprefix("ipc://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("endpoint", ["", "ipc://", "tcp://1.2.3.4", "inproc://x", "/tmp/x", "ipc://" + "x" * 200])
def test_bad_endpoints(endpoint: str) -> None:
    with pytest.raises(BadEndpoint):
        check_endpoint(endpoint, insecure_tcp=True)


def test_plain_tcp_only_on_loopback_and_only_when_asked_for() -> None:
    with pytest.raises(BadEndpoint, match="insecure-tcp"):
        check_endpoint("tcp://127.0.0.1:5555")
    with pytest.raises(BadEndpoint, match="loopback"):
        check_endpoint("tcp://10.0.0.1:5555", insecure_tcp=True)
    assert check_endpoint("tcp://127.0.0.1:5555", insecure_tcp=True) == "tcp://127.0.0.1:5555"
