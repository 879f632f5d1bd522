"""What is said on a WebSocket: a real frontend, a real engine core, a made-up device."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.handover import passage
from tests.api_server.live import LiveServer, until
from tests.api_server.serving import CARD, serving
from tests.api_server.sockets import SocketClient, chunks
from tests.fakes import MadeUpDevice, MadeUpEngine

HELLO = {"prompt": "Hello world", "max_tokens": 6, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Hello world"}], "max_tokens": 6, "ignore_eos": True}
ENDLESS = {"prompt": "Hello world", "max_tokens": 200, "ignore_eos": True}
CANCEL_UNKNOWN = {"type": "cancel", "id": "nobody"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with serving(tmp_path_factory.mktemp("engine"), max_body_size=100_000) as (server, _):
        yield server


@pytest.fixture
def client(shared: LiveServer) -> Iterator[SocketClient]:
    with SocketClient(shared.port) as found:
        yield found


def error(message: dict[str, Any]) -> tuple[str | None, str, str | None]:
    """Its id, code and param."""
    assert set(message) == {"type", "id", "error"}
    assert message["type"] == "error"
    assert set(message["error"]) == {"message", "type", "param", "code"}
    return message["id"], message["error"]["code"], message["error"]["param"]


# ---------------------------------------------------------------------------------------------------- generations


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", HELLO),
        ("/v1/completions", {**HELLO, "n": 2, "echo": True, "stream": False}),
        ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**CHAT, "n": 2, "return_token_ids": True, "prompt": "is not read"}),
        ("/v1/completions", {**HELLO, "messages": None}),
    ],
)
def test_chunks_are_those_of_an_event_stream(
    shared: LiveServer, client: SocketClient, route: str, body: dict[str, Any]
) -> None:
    client.generate("a", **body)
    [*heard] = chunks(client.until_end("a")["a"])
    answer = shared.post(route, json.dumps({**body, "stream": True}).encode())
    *events, done = answer.body.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    seen = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({chunk["id"] for chunk in heard}) == 1
    # Tokens that come together share a chunk, and what comes together is chance: what there is of each choice is not.
    assert joined(heard) == joined(seen)
    assert {tuple(chunk) for chunk in heard} == {tuple(chunk) for chunk in seen}
    assert heard[-1].get("usage") == seen[-1].get("usage")


def joined(events: list[dict[str, Any]]) -> dict[int, tuple[str, list[Any]]]:
    """Text and finish reasons of each choice."""
    found: dict[int, tuple[str, list[Any]]] = {}
    for event in events:
        for choice in event["choices"]:
            text, finishes = found.get(choice["index"], ("", []))
            said = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            reason = choice["finish_reason"]
            found[choice["index"]] = (text + said, finishes + ([reason] if reason else []))
    return found


def test_a_body_with_messages_gives_chat_chunks_and_one_with_a_prompt_completion_chunks(client: SocketClient) -> None:
    client.generate("chat", **CHAT)
    client.generate("completion", **HELLO)
    heard = client.until_end("chat", "completion")
    assert {chunk["object"] for chunk in chunks(heard["chat"])} == {"chat.completion.chunk"}
    assert {chunk["object"] for chunk in chunks(heard["completion"])} == {"text_completion"}


def test_an_id_is_free_again_when_its_end_was_told(client: SocketClient) -> None:
    seen = set()
    for _ in range(3):
        client.generate("a", **HELLO)
        seen.add(chunks(client.until_end("a")["a"])[0]["id"])
    assert len(seen) == 3


def test_a_refused_body_ends_its_generation_alone(client: SocketClient) -> None:
    client.generate("good", **HELLO)
    client.generate("bad", prompt="x", temperature=9)
    client.generate("worse", **{**HELLO, "max_tokens": 5000})
    heard = client.until_end("good", "bad", "worse")
    assert chunks(heard["good"])
    assert [error(message) for message in heard["bad"]] == [("bad", "invalid_request_error", "temperature")]
    assert [error(message) for message in heard["worse"]] == [("worse", "context_length_exceeded", "max_tokens")]


def test_time_limits_are_those_of_http(tmp_path: Path) -> None:
    device = MadeUpDevice()
    with serving(tmp_path, device) as (server, _), SocketClient(server.port) as client:
        device.gate.clear()
        client.generate("a", **HELLO, timeout=0.1)
        assert [error(message) for message in client.until_end("a")["a"]] == [("a", "request_timeout", None)]


# ---------------------------------------------------------------------------------------------------- cancel


def test_a_cancelled_generation_ends_with_an_error_and_gives_its_blocks_back(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), SocketClient(server.port) as client:
        client.generate("a", **ENDLESS)
        client.generate("b", **HELLO)
        assert client.hear()["type"] == "chunk"
        client.cancel("a")
        heard = client.until_end("a", "b")
        assert error(heard["a"][-1]) == ("a", "request_cancelled", None)
        assert chunks(heard["b"])
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
        client.cancel("a")
        assert error(client.hear()) == (None, "request_not_found", "id")


@pytest.mark.parametrize("gap", ["none", "queued"])
def test_it_may_be_cancelled_at_any_time(tmp_path: Path, gap: str) -> None:
    """Before its first step, and while the engine has not answered. Told twice, it ends once."""
    device = MadeUpDevice()
    device.gate.clear()
    with serving(tmp_path, device) as (server, engine), SocketClient(server.port) as client:
        client.generate("first", **ENDLESS)
        until(lambda: bool(engine.scheduler.running))
        client.generate("a", **ENDLESS)
        if gap == "queued":
            until(lambda: server.frontend.engine._next_handle == 2)
        client.cancel("a")
        client.cancel("a")
        client.generate("b", **HELLO)
        client.cancel("first")
        heard: list[dict[str, Any]] = []
        while not any(message["id"] == "first" for message in heard):  # it could end by itself once the gate is open
            heard.append(client.hear())
        device.gate.set()
        while (message := client.hear())["id"] != "b" or message["type"] == "chunk":
            heard.append(message)
        assert message["type"] == "done"
        heard = [message for message in heard if message["type"] == "error"]
        told = [error(message) for message in heard if message["id"] is not None]
        assert sorted(told) == [("a", "request_cancelled", None), ("first", "request_cancelled", None)]
        assert {error(message) for message in heard} - {*told} <= {(None, "request_not_found", "id")}
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)


def test_http_s_cancel_ends_it_too(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), SocketClient(server.port) as client:
        client.generate("a", **ENDLESS)
        rid = client.hear()["data"]["id"]
        answer = server.post(f"/v1/requests/{rid}/cancel", b"")
        assert json.loads(answer.body) == {"id": rid, "cancelled": True}
        assert error(client.until_end("a")["a"][-1]) == ("a", "request_cancelled", None)
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)


@pytest.mark.parametrize("politely", [True, False])
def test_a_socket_that_closes_aborts_what_it_has(tmp_path: Path, politely: bool) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine):
        with SocketClient(server.port) as other:
            other.generate("keeps", **HELLO)
            client = SocketClient(server.port)
            for name in "abc":
                client.generate(name, **ENDLESS)
            until(lambda: len(engine.scheduler.running) >= 3)
            if politely:
                client.close()
            else:
                client.connection.socket.shutdown(2)
            assert chunks(other.until_end("keeps")["keeps"])
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
        assert engine.device.steps < 150
        client.close()


# ---------------------------------------------------------------------------------------------------- bad messages


def test_a_running_id_can_t_be_used_twice_and_its_generation_goes_on(tmp_path: Path) -> None:
    device = MadeUpDevice()
    with serving(tmp_path, device) as (server, _), SocketClient(server.port) as client:
        device.gate.clear()
        client.generate("a", **HELLO)
        client.generate("a", **HELLO)
        assert error(client.hear()) == (None, "invalid_request_error", "id")
        client.say({"type": "nonsense", "id": "a"})
        assert error(client.hear()) == (None, "invalid_request_error", "type")
        device.gate.set()
        assert chunks(client.until_end("a")["a"])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", (None, "invalid_json", None)),
        ("{", (None, "invalid_json", None)),
        ("[]", (None, "invalid_request_error", None)),
        ("null", (None, "invalid_request_error", None)),
        (b"\xff\xfe", (None, "invalid_json", None)),
        ("[" * 40 + "]" * 40, (None, "invalid_json", None)),
        ('{"id":"a"}', ("a", "invalid_request_error", "type")),
        ('{"type":"generate"}', (None, "invalid_request_error", "id")),
        ('{"type":"nonsense","id":"a"}', ("a", "invalid_request_error", "type")),
        ('{"type":"generate","id":7,"body":{}}', (None, "invalid_request_error", "id")),
        ('{"type":"generate","id":"","body":{}}', (None, "invalid_request_error", "id")),
        ('{"type":"generate","id":"%s","body":{}}' % ("x" * 129), (None, "invalid_request_error", "id")),
        ('{"type":"generate","id":"a"}', ("a", "invalid_request_error", "body")),
        ('{"type":"generate","id":"a","body":{}}', ("a", "invalid_request_error", "messages")),
        ('{"type":"generate","id":"a","body":[]}', ("a", "invalid_request_error", None)),
        ('{"type":"generate","id":"a","body":null}', ("a", "invalid_request_error", None)),
        (
            '{"type":"generate","id":"a","body":{"messages":null}}',
            ("a", "invalid_request_error", "messages"),
        ),
        ('{"type":"generate","id":"a","body":{"prompt":7}}', ("a", "invalid_request_error", "prompt")),
        ('{"type":"generate","id":"a","body":{"messages":7}}', ("a", "invalid_request_error", "messages")),
        ('{"type":"generate","id":"a","body":{"prompt":"x","model":"y"}}', ("a", "model_not_found", "model")),
        ('{"type":"cancel","id":"a"}', (None, "request_not_found", "id")),
        ('{"type":"generate","id":"a","body":{"prompt":"%s"}}' % ("x" * 100_000), ("a", "request_too_large", None)),
    ],
)
def test_a_bad_message_is_an_error_and_the_socket_goes_on(
    client: SocketClient, message: str | bytes, expected: tuple[str | None, str, str | None]
) -> None:
    client.say(message)
    assert error(client.hear()) == expected
    client.say(json.dumps({"type": "generate", "id": "next", "body": HELLO}).encode())  # binary is as good as text
    assert chunks(client.until_end("next")["next"])


WORDS = st.sampled_from(["type", "id", "body", "generate", "cancel", "a", "b", "prompt", "messages", "max_tokens"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NOT_QUITE = st.fixed_dictionaries(
    {"type": st.sampled_from(["generate", "cancel"]) | JSON, "id": WORDS | JSON}, optional={"body": JSON, "more": JSON}
)
GARBAGE = st.lists(st.text() | st.binary() | JSON.map(json.dumps) | NOT_QUITE.map(json.dumps), max_size=20)


@given(GARBAGE)
def test_no_garbage_ends_the_socket_or_another_s_generation(shared: LiveServer, garbage: list[str | bytes]) -> None:
    with SocketClient(shared.port) as client:
        client.generate("mine", **HELLO)
        for message in garbage:
            client.say(message)
        client.generate("last", **HELLO)
        heard: dict[str | None, list[dict[str, Any]]] = {"mine": [], "last": []}
        while not all(ended(heard[name]) for name in ("mine", "last")):
            message_heard = client.hear()
            heard.setdefault(message_heard["id"], []).append(message_heard)
        assert chunks(heard["mine"])
        assert chunks(heard["last"])


def ended(messages: list[dict[str, Any]]) -> bool:
    return bool(messages) and messages[-1]["type"] != "chunk"


# ---------------------------------------------------------------------------------------------------- many


def test_a_socket_takes_so_many_generations_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_server.multiplex.MAX_GENERATIONS", 2)
    device = MadeUpDevice()
    with serving(tmp_path, device) as (server, _), SocketClient(server.port) as client:
        device.gate.clear()
        for name in "abc":
            client.generate(name, **HELLO)
        assert error(client.hear()) == ("c", "queue_full", None)
        device.gate.set()
        client.until_end("a", "b")
        client.generate("c", **HELLO)
        assert chunks(client.until_end("c")["c"])


def test_generations_on_one_socket_do_not_show_in_each_other(tmp_path: Path) -> None:
    """Each gives its own prompt back, over and over."""
    tokens = {f"g{number}": [random.Random(number).randrange(20, 300) for _ in range(7)] for number in range(40)}
    with serving(tmp_path) as (server, _), SocketClient(server.port) as client:
        for name, prompt in tokens.items():
            client.generate(name, prompt=prompt, max_tokens=20, ignore_eos=True, return_token_ids=True)
        heard = client.until_end(*tokens)
    for name, prompt in tokens.items():
        said = [token for chunk in chunks(heard[name]) for token in chunk["choices"][0]["token_ids"]]
        assert said == (prompt * 3)[:20]


# ---------------------------------------------------------------------------------------------------- the way out


def test_draining_finishes_what_runs_refuses_what_is_new_and_closes(tmp_path: Path) -> None:
    device = MadeUpDevice()
    with (
        serving(tmp_path, device) as (server, engine),
        SocketClient(server.port) as busy,
        SocketClient(server.port) as idle,
    ):
        device.gate.clear()
        busy.generate("a", **HELLO)
        until(lambda: bool(engine.scheduler.running))
        server.stop()
        assert idle.closed() == 1001
        busy.generate("b", **HELLO)
        assert error(busy.hear()) == ("b", "draining", None)
        device.gate.set()
        assert chunks(busy.until_end("a")["a"])
        assert busy.closed() == 1001
        server.join()


def test_a_retiring_frontend_serves_what_comes_and_closes_at_rest(tmp_path: Path) -> None:
    device = MadeUpDevice()
    with (
        passage() as way,
        serving(tmp_path, device, give_fd=os.dup(way.give.fileno()), take_fd=os.dup(way.take.fileno())) as (
            server,
            engine,
        ),
        SocketClient(server.port) as busy,
        SocketClient(server.port) as idle,
    ):
        device.gate.clear()
        busy.generate("a", **HELLO)
        until(lambda: bool(engine.scheduler.running))
        server.retire()
        assert idle.closed() == 1001
        busy.generate("b", **HELLO)
        until(lambda: server.frontend.drain.active == 2)
        device.gate.set()
        heard = busy.until_end("a", "b")
        assert chunks(heard["a"])
        assert chunks(heard["b"])
        assert busy.closed() == 1001
        server.join()


def test_what_outlasts_the_drain_ends_with_an_error(tmp_path: Path) -> None:
    device = MadeUpDevice()
    with serving(tmp_path, device, shutdown_timeout_s=0.1) as (server, _), SocketClient(server.port) as client:
        device.gate.clear()
        client.generate("a", **HELLO)
        client.generate("b", **HELLO)
        until(lambda: server.frontend.drain.active == 2)
        server.stop()
        heard = client.until_end("a", "b")
        assert [error(heard[name][-1])[1] for name in "ab"] == ["draining", "draining"]
        assert client.closed() == 1001
        server.join()
        device.gate.set()


def test_an_engine_that_dies_ends_generations_and_not_the_socket(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), SocketClient(server.port) as client:
        client.generate("a", **ENDLESS)
        assert client.hear()["type"] == "chunk"
        engine.kill()
        assert error(client.until_end("a")["a"][-1]) == ("a", "engine_restarting", None)
        with MadeUpEngine(engine.channel.endpoint, card=CARD, epoch=2):
            client.generate("a", **HELLO)
            assert chunks(client.until_end("a")["a"])
