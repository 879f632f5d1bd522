"""A stream that was cut goes on: nothing lost, nothing twice, on whichever worker."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from api_server.routes import API
from tests.api_server.live import Answer, BareClient, LiveServer, until
from tests.api_server.serving import serving
from tests.fakes import MadeUpDevice, MadeUpEngine

STEP_S = 0.001
RESUMABLE = {"stream": True, "stream_options": {"resumable": True}}
COUNTED = {"stream": True, "stream_options": {"resumable": True, "include_usage": True}}
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello world 漢字 👩‍👩‍👧"}]
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": HELLO, "max_tokens": 40, **COUNTED}),
    "chat, two choices": (CHAT, {"messages": HELLO, "max_tokens": 20, "n": 2, "return_token_ids": True, **COUNTED}),
    "chat, a stop string": (CHAT, {"messages": HELLO, "max_tokens": 60, "stop": ["字"], **COUNTED}),
    "chat, counted": (
        CHAT,
        {
            "messages": HELLO,
            "max_tokens": 20,
            "stream": True,
            "stream_options": {"resumable": True, "include_usage": True, "continuous_usage_stats": True},
        },
    ),
    "completion, echo": (COMPLETIONS, {"prompt": ["Hello", "world"], "max_tokens": 15, "echo": True, **COUNTED}),
    "completion": (COMPLETIONS, {"prompt": "漢字 👩‍👩‍👧 Hello", "max_tokens": 40, **RESUMABLE}),
    "generate": ("/generate", {"prompt": "Hello 漢字", "max_tokens": 30, **RESUMABLE}),
    "text": ("/v1/completions/stream", {"prompt": "Hello 漢字", "max_tokens": 30, **RESUMABLE}),
}
DONE = "[DONE]"


@contextmanager
def two_workers(path: Path, device: MadeUpDevice | None = None, **settings: Any) -> Iterator[tuple[LiveServer, ...]]:
    device = device or MadeUpDevice(step_s=STEP_S)
    with (
        serving(path, device, **settings) as (first, engine),
        LiveServer(API, engine=engine.channel.endpoint, **settings) as second,
    ):
        key = "".join(f"X-Api-Key: {key}\r\n" for key in settings.get("api_keys", ())[:1])
        until(lambda: second.get("/v1/models", key).status == 200)
        first.made_up_engine = engine  # type: ignore[attr-defined]
        yield first, second


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, ...]]:
    with two_workers(tmp_path_factory.mktemp("engine")) as found:
        yield found


def post(server: LiveServer, path: str, body: dict[str, Any], headers: str = "") -> Answer:
    return server.post(path, json.dumps({"ignore_eos": True, **body}).encode(), headers)


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """The number of each event, and its data; the number of one without is empty."""
    found = []
    for event in body.decode().removesuffix("\n\n").split("\n\n"):
        number, data = re.fullmatch(r"(?:id: (\S+)\n?)?(?:data: (.*))?", event).groups()  # type: ignore[union-attr]
        found.append((number or "", data if data in (None, DONE) else json.loads(data)))
    return found


def joined(events: list[tuple[str, Any]]) -> dict[Any, Any]:
    """All that a client puts together from a stream. Which chunk brought what is chance, and so are times."""
    found: dict[Any, Any] = {}
    for _, data in events:
        if data is None or data == DONE:
            found[data] = found.get(data, 0) + 1
            continue
        if "token" in data:
            found["text"] = found.get("text", "") + data["token"]
            found["ids"] = found.get("ids", []) + [data[name] for name in ("token_id",) if name in data]
            continue
        assert (data["id"], data["created"], data["model"]) == found.setdefault(
            "shared", (data["id"], data["created"], data["model"])
        )
        if not data["choices"]:
            found["usage"] = data["usage"]
        for choice in data["choices"]:
            said = found.setdefault(choice["index"], {"text": "", "roles": [], "ids": [], "ends": []})
            delta = choice.get("delta", {})
            said["text"] += choice.get("text", "") or delta.get("content", "") or ""
            said["roles"] += [delta["role"]] if "role" in delta else []
            said["ids"] += choice.get("token_ids", [])
            said["ends"] += [(choice["finish_reason"], choice["stop_reason"])] if choice["finish_reason"] else []
    return found


def resume(server: LiveServer, rid: str, number: str, headers: str = "") -> Answer:
    return server.get(f"/v1/streams/{rid}", f"Last-Event-ID: {number}\r\n{headers}")


def rid_of(answer: Answer) -> str:
    return answer.headers["x-stream-id"]


# ---------------------------------------------------------------------------------------------------- from anywhere


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
def test_from_every_number_the_rest_completes_what_was_seen(
    workers: tuple[LiveServer, ...], path: str, body: dict[str, Any]
) -> None:
    first, second = workers
    answer = post(first, path, body)
    assert answer.status == 200
    events = events_of(answer.body)
    whole, rid = joined(events), rid_of(answer)
    numbers = [number for number, _ in events if number]
    assert len(numbers) >= 5
    assert all(number.startswith(f"{rid}.") for number in numbers)
    for place, (number, _) in enumerate(events):
        if not number:
            continue
        again = resume((first, second)[place % 2], rid, number)
        assert again.status == 200
        assert again.headers["x-stream-id"] == rid
        assert joined(events[: place + 1] + events_of(again.body)) == whole, number


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
def test_without_a_number_it_comes_from_the_beginning(
    workers: tuple[LiveServer, ...], path: str, body: dict[str, Any]
) -> None:
    first, second = workers
    answer = post(first, path, body)
    again = second.get(f"/v1/streams/{rid_of(answer)}")
    assert joined(events_of(again.body)) == joined(events_of(answer.body))


def test_the_first_number_is_0_and_the_end_rides_on_the_last(workers: tuple[LiveServer, ...]) -> None:
    answer = post(workers[0], CHAT, {"messages": HELLO, "max_tokens": 6, "n": 2, **COUNTED})
    events, rid = events_of(answer.body), rid_of(answer)
    assert [number for number, _ in events[:2]] == ["", f"{rid}.0.0"]
    assert [data["choices"][0]["delta"]["role"] for _, data in events[:2]] == ["assistant"] * 2
    *_, last, usage, done = events
    assert last[0] == f"{rid}.6.6"
    assert last[1]["choices"][0]["finish_reason"] == "length"
    assert (usage[0], done) == ("", ("", DONE))
    rest = events_of(resume(workers[1], rid, last[0]).body)
    assert [data for _, data in rest] == [usage[1], DONE]


def test_every_token_of_generate_has_its_number(workers: tuple[LiveServer, ...]) -> None:
    answer = post(workers[0], *REQUESTS["generate"])
    numbers = [number for number, _ in events_of(answer.body) if number]
    assert numbers == [f"{rid_of(answer)}.{count}" for count in range(1, 31)]


# ---------------------------------------------------------------------------------------------------- while it runs


def cut(server: LiveServer, path: str, body: dict[str, Any], mark: bytes, headers: str = "") -> tuple[str, bytes]:
    """Begins a stream and leaves once `mark` has come. The stream's id, and whole events that were read."""
    text = json.dumps({"ignore_eos": True, **body}).encode()
    with server.connect() as client:
        client.send(f"POST {path} HTTP/1.0\r\n{headers}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        head = client.until(b"\r\n\r\n").decode()
        seen = client.until(mark)
    return head.split("x-stream-id: ")[1].split("\r\n")[0], seen[: seen.rindex(b"\n\n") + 2]


def test_a_cut_stream_goes_on_elsewhere_and_generates_nothing_twice(tmp_path: Path) -> None:
    device = MadeUpDevice(step_s=0.01)
    body = {"messages": HELLO, "max_tokens": 80, **COUNTED}
    with two_workers(tmp_path, device) as (first, second):
        engine: MadeUpEngine = first.made_up_engine  # type: ignore[attr-defined]
        whole = joined(events_of(post(first, CHAT, body).body))
        steps = device.steps
        rid, seen = cut(first, CHAT, body, b"Hello")
        number = events_of(seen)[-1][0]
        until(lambda: engine.core._shelf.next_s is not None)  # the engine knows that nobody reads it
        rest = resume(second, rid, number).body
        assert device.steps <= 2 * steps + 1
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
    again = joined(events_of(seen) + events_of(rest))
    whole.pop("shared"), again.pop("shared")
    assert again == whole


def test_the_newest_reader_wins(tmp_path: Path) -> None:
    with two_workers(tmp_path, MadeUpDevice(step_s=0.02)) as (first, second), BareClient(first.port) as older:
        text = json.dumps({"messages": HELLO, "max_tokens": 150, "ignore_eos": True, **RESUMABLE}).encode()
        older.send(f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
        rid = older.until(b"\r\n\r\n").decode().split("x-stream-id: ")[1].split("\r\n")[0]
        older.until(b"Hello")
        newer = second.get(f"/v1/streams/{rid}")
        end = older.rest()
    assert json.loads(end.rstrip().rpartition(b"data: ")[2])["error"]["code"] == "stream_taken"
    assert newer.body.endswith(b"data: [DONE]\n\n")


def test_a_reader_that_comes_back_to_its_own_worker_wins_too(tmp_path: Path) -> None:
    with two_workers(tmp_path, MadeUpDevice(step_s=0.02)) as (first, _):
        rid, seen = cut(first, CHAT, {"messages": HELLO, "max_tokens": 60, **RESUMABLE}, b"Hello")
        rest = resume(first, rid, events_of(seen)[-1][0]).body
        assert joined(events_of(seen) + events_of(rest))[0]["ends"] == [("length", None)]


def test_what_is_not_resumable_is_aborted_when_its_client_leaves(tmp_path: Path) -> None:
    with two_workers(tmp_path, MadeUpDevice(step_s=0.02)) as (first, second):
        engine: MadeUpEngine = first.made_up_engine  # type: ignore[attr-defined]
        rid, _ = cut(first, CHAT, {"messages": HELLO, "max_tokens": 200, "stream": True}, b"Hello")
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
        assert engine.device.steps < 150
        assert resume(second, rid, f"{rid}.1").status == 404


def test_a_worker_that_dies_takes_no_resumable_stream_with_it(tmp_path: Path) -> None:
    device = MadeUpDevice(step_s=0.02)
    body = {"messages": HELLO, "max_tokens": 100, **COUNTED}
    with serving(tmp_path, device) as (first, engine):
        with LiveServer(API, engine=engine.channel.endpoint, shutdown_timeout_s=0.0) as second:
            until(lambda: second.get("/v1/models").status == 200)
            rid, seen = cut(second, CHAT, body, b"Hello")
        rest = resume(first, rid, events_of(seen)[-1][0]).body
    found = joined(events_of(seen) + events_of(rest))
    assert found[0]["ends"] == [("length", None)]
    assert found["usage"]["completion_tokens"] == 100


def test_a_cancelled_stream_can_t_be_resumed(tmp_path: Path) -> None:
    with two_workers(tmp_path, MadeUpDevice(step_s=0.02)) as (first, second):
        rid, _ = cut(first, CHAT, {"messages": HELLO, "max_tokens": 200, **RESUMABLE}, b"Hello")
        assert second.post(f"/v1/requests/{rid}/cancel", b"").status == 200
        assert second.get(f"/v1/streams/{rid}").status == 404


# ---------------------------------------------------------------------------------------------------- who may not


def test_another_key_s_stream_is_as_unknown_as_none(tmp_path: Path) -> None:
    key, other = "X-Api-Key: k1\r\n", "X-Api-Key: k2\r\n"
    with two_workers(tmp_path, api_keys=("k1", "k2")) as (first, second):
        answer = post(first, *REQUESTS["chat"], key)
        foreign = second.get(f"/v1/streams/{rid_of(answer)}", other)
        unknown = second.get("/v1/streams/chatcmpl-" + "0" * 32, other)
        assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
        assert json.loads(foreign.body)["error"]["code"] == "stream_not_found"
        assert foreign.status == 404
        assert second.get(f"/v1/streams/{rid_of(answer)}").status == 401
        assert second.get(f"/v1/streams/{rid_of(answer)}", key).status == 200


@pytest.mark.parametrize("number", ["x", "-1", "1.", "1.2", "1.2.3", ".1", "99999", "1" * 11, "chatcmpl-0.1", "1e3"])
def test_a_position_that_is_none_is_400(workers: tuple[LiveServer, ...], number: str) -> None:
    rid = rid_of(post(workers[0], CHAT, {"messages": HELLO, "max_tokens": 5, **RESUMABLE}))
    for answer in (resume(workers[1], rid, number), workers[1].get(f"/v1/streams/{rid}?after={number}")):
        assert answer.status == 400
        assert json.loads(answer.body)["error"]["param"] in ("Last-Event-ID", "after")


@pytest.mark.parametrize("number", ["3", "{rid}.3"])
def test_the_position_may_be_in_the_query(workers: tuple[LiveServer, ...], number: str) -> None:
    answer = post(workers[0], CHAT, {"messages": HELLO, "max_tokens": 5, "return_token_ids": True, **RESUMABLE})
    rid = rid_of(answer)
    rest = workers[1].get(f"/v1/streams/{rid}?after={number.format(rid=rid)}")
    assert joined(events_of(rest.body))[0]["ids"] == joined(events_of(answer.body))[0]["ids"][3:]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
def test_lines_can_t_be_resumed(workers: tuple[LiveServer, ...], path: str) -> None:
    body = {"messages": HELLO, "prompt": "x", "max_tokens": 5, **RESUMABLE}
    answer = post(workers[0], path, body, "Accept: application/x-ndjson\r\n")
    assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "stream_options")


def test_what_the_engine_keeps_is_bounded(workers: tuple[LiveServer, ...]) -> None:
    body = {"messages": HELLO, "max_tokens": 5, "nobody_reads_this": "x" * (1 << 20)}
    assert post(workers[0], CHAT, body).status == 200
    answer = post(workers[0], CHAT, {**body, **RESUMABLE})
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "request_too_large")


# ---------------------------------------------------------------------------------------------------- EventSource

QUERY = "/v1/completions/stream?prompt=Hello%20world&max_tokens=30&ignore_eos=true"


def test_an_event_source_can_be_cut_anywhere(workers: tuple[LiveServer, ...]) -> None:
    answer = workers[0].get(QUERY)
    events, rid = events_of(answer.body), rid_of(answer)
    assert events[0] == (f"{rid}.0", None)
    whole = joined(events[1:])
    assert whole[DONE] == 1
    for place, (number, _) in enumerate(events[:-1]):
        again = workers[place % 2].get(QUERY, f"Last-Event-ID: {number}\r\nConnection: close\r\n")
        if number == f"{rid}.30":
            assert (again.status, again.body) == (204, b"")
        else:
            assert again.status == 200
            assert joined(events[1 : place + 1] + events_of(again.body)) == whole


@pytest.mark.parametrize("number", ["x", "cmpl-" + "0" * 32 + ".3", "", "é", "cmpl-" + "0" * 32, "a.b.c"])
def test_it_never_generates_twice(workers: tuple[LiveServer, ...], number: str) -> None:
    steps = workers[0].made_up_engine.device.steps  # type: ignore[attr-defined]
    answer = workers[0].get(QUERY, f"Last-Event-ID: {number}\r\nConnection: close\r\n")
    assert (answer.status, answer.body) == (204, b"")
    assert workers[0].made_up_engine.device.steps == steps  # type: ignore[attr-defined]
