"""Many generations on one WebSocket, through the whole server."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.api_server.sockets import SocketClient, chunks
from tests.e2e.server import Server, until

ANIMALS = ("fox", "bear", "robot", "dragon", "cat", "owl", "whale", "mouse", "king", "boat")
LONG = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True}


@pytest.fixture(scope="module")
def exact() -> Iterator[Server]:
    """A server whose answers don't depend on who else asks."""
    with Server("--dtype", "float32", "--no-enable-prefix-caching", "--api-key", "secret") as running:
        yield running


@pytest.fixture
def client(exact: Server) -> Iterator[SocketClient]:
    with SocketClient(exact.port, "?access_token=secret") as found:
        yield found


def questions() -> dict[str, dict[str, Any]]:
    """Fifty of them, half of each route, and no two alike."""
    common = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
    found: dict[str, dict[str, Any]] = {}
    for number in range(25):
        text = f"Tell me of the {ANIMALS[number % 10]} who had {number} friends"
        found[f"completion {number}"] = {"prompt": text, "logprobs": 0, **common}
        found[f"chat {number}"] = {"messages": [{"role": "user", "content": text}], **common}
    return found


def twin(server: Server, body: dict[str, Any]) -> list[Any]:
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    events: list[Any] = server.post(route, {**body, "stream": True}, {"X-Api-Key": "secret"}).events()
    return events


def token_ids(events: list[Any]) -> list[int]:
    return [token for event in events for choice in event["choices"] for token in choice.get("token_ids", ())]


def text(events: list[Any]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


def test_fifty_generations_on_one_socket_are_as_their_event_streams(exact: Server, client: SocketClient) -> None:
    asked = questions()
    for name, body in asked.items():
        client.generate(name, **body)
    heard = client.until_end(*asked)
    with ThreadPoolExecutor(8) as pool:
        twins = dict(zip(asked, pool.map(lambda body: twin(exact, body), asked.values()), strict=True))
    for name in asked:
        mine = chunks(heard[name])
        assert token_ids(mine) == token_ids(twins[name])
        assert len(token_ids(mine)) == 24
        assert text(mine) == text(twins[name])
        assert {tuple(chunk) for chunk in mine} == {tuple(chunk) for chunk in twins[name]}


def test_a_socket_that_closes_frees_its_blocks(exact: Server) -> None:
    aborted = exact.metric("vllm:request_success_total", finished_reason="abort")
    with SocketClient(exact.port, additional_headers={"Authorization": "Bearer secret"}) as client:
        for number in range(10):
            client.generate(str(number), **LONG)
        until(lambda: exact.engine()["running"] == 10)
    until(lambda: exact.engine()["running"] == 0)
    until(lambda: exact.metric("vllm:kv_cache_usage_perc") == 0)
    until(lambda: exact.metric("vllm:request_success_total", finished_reason="abort") >= aborted + 10)


def test_one_generation_is_cancelled_and_the_others_go_on(exact: Server, client: SocketClient) -> None:
    client.generate("long", **LONG)
    client.generate("short", **{**LONG, "max_tokens": 30})
    assert client.hear()["type"] == "chunk"
    client.cancel("long")
    heard = client.until_end("long", "short")
    assert heard["long"][-1]["error"]["code"] == "request_cancelled"
    assert heard["short"][-1] == {"type": "done", "id": "short"}
    until(lambda: exact.engine()["running"] == 0)


@pytest.mark.parametrize(
    ("query", "origin", "status"),
    [("", None, 401), ("?access_token=no", None, 401), ("?access_token=secret", "https://evil.example", 403)],
)
def test_who_may_not_is_told_before_the_socket_opens(
    exact: Server, query: str, origin: str | None, status: int
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        SocketClient(exact.port, query, origin=origin)
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body or b"")["error"]["code"] in ("invalid_api_key", "origin_not_allowed")
    assert "secret" not in exact.log()
    assert "access_token" not in exact.log()


def test_a_signal_lets_what_runs_finish_and_closes_the_socket() -> None:
    with Server() as server, SocketClient(server.port) as client, SocketClient(server.port) as idle:
        client.generate("a", **{**LONG, "max_tokens": 600})
        assert client.hear()["type"] == "chunk"
        server.process.send_signal(signal.SIGTERM)
        assert idle.closed() == 1001
        client.generate("b", **LONG)
        heard = client.until_end("a", "b")
        assert heard["b"][0]["error"]["code"] == "draining"
        assert heard["a"][-1] == {"type": "done", "id": "a"}
        assert heard["a"][-2]["data"]["choices"][0]["finish_reason"] == "length"
        assert client.closed() == 1001
        assert server.process.wait(20) == 0
