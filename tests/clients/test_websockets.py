"""`websockets` on /v1/ws: many generations on one socket."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.service import KEY, MODEL, QUESTION, STORY, Service

client = pytest.importorskip("websockets.sync.client")
from websockets.exceptions import InvalidStatus  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
WAIT_S = 60.0


@pytest.fixture
def socket(service: Service) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with client.connect(f"ws://127.0.0.1:{service.port}/v1/ws", additional_headers=headers) as found:
        yield found


def generate(socket: Any, name: str, **body: Any) -> None:
    body = {"model": MODEL, "temperature": 0, **body}
    socket.send(json.dumps({"type": "generate", "id": name, "body": body}))


def receive(socket: Any) -> Any:
    return json.loads(socket.recv(WAIT_S))


def until_ends(socket: Any, *names: str) -> dict[str, list[Any]]:
    """All messages of these generations, up to the one that ends each."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    while not all(messages and messages[-1]["type"] != "chunk" for messages in found.values()):
        message = receive(socket)
        found[message["id"]].append(message)
    return found


def text_of(messages: list[Any]) -> str:
    choices = [choice for message in messages[:-1] for choice in message["data"]["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def test_generations_side_by_side(socket: Any, service: Service) -> None:
    generate(socket, "a", messages=QUESTION)
    generate(socket, "b", prompt=STORY, max_tokens=30)
    found = until_ends(socket, "a", "b")
    assert [messages[-1]["type"] for messages in found.values()] == ["done", "done"]
    body = {"prompt": STORY, "max_tokens": 30, "temperature": 0}
    whole = service.post("/v1/completions", body, {"Authorization": f"Bearer {KEY}"}).json()
    assert text_of(found["b"]) == whole["choices"][0]["text"]
    assert text_of(found["a"])


def test_a_cancelled_one_ends_and_the_other_goes_on(socket: Any, service: Service) -> None:
    generate(socket, "long", prompt=STORY, max_tokens=1900, ignore_eos=True)
    generate(socket, "short", prompt=STORY, max_tokens=300, ignore_eos=True)
    seen = [receive(socket)]
    socket.send(json.dumps({"type": "cancel", "id": "long"}))
    ends = {}
    while len(ends) < 2:
        seen.append(receive(socket))
        if seen[-1]["type"] != "chunk":
            ends[seen[-1]["id"]] = seen[-1]
    assert ends["long"]["error"]["code"] == "request_cancelled"
    assert ends["short"]["type"] == "done"
    service.wait_idle()


def test_a_bad_message_is_an_error_and_the_socket_goes_on(socket: Any) -> None:
    socket.send("{nonsense")
    assert receive(socket)["type"] == "error"
    generate(socket, "bad", prompt=STORY, temperature=9.0)
    [message] = until_ends(socket, "bad")["bad"]
    assert message["error"]["param"] == "temperature"
    generate(socket, "good", prompt=STORY, max_tokens=2)
    assert until_ends(socket, "good")["good"][-1]["type"] == "done"


def test_closing_the_socket_gives_everything_back(socket: Any, service: Service) -> None:
    for name in "abc":
        generate(socket, name, prompt=STORY, max_tokens=1900, ignore_eos=True)
    assert receive(socket)["type"] == "chunk"
    socket.close()
    service.wait_idle()


def test_the_key_is_asked_for(service: Service) -> None:
    url = f"ws://127.0.0.1:{service.port}/v1/ws"
    with pytest.raises(InvalidStatus):
        client.connect(url).close()
    with pytest.raises(InvalidStatus):
        client.connect(f"{url}?access_token=wrong").close()
    with client.connect(f"{url}?access_token={KEY}") as socket:
        generate(socket, "a", prompt=STORY, max_tokens=1)
        assert until_ends(socket, "a")["a"][-1]["type"] == "done"
