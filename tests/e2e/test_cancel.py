"""Ending a request from outside, through any of the frontends."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Answer, Server, descendants, until

LONG = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "temperature": 0, "stream": True}
MINE, OTHER = {"X-Api-Key": "mine"}, {"X-Api-Key": "other"}


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """Two frontends, two keys, and room for two sequences at a time."""
    with Server("--api-workers", "2", "--max-num-seqs", "2", "--api-key", "mine", "--api-key", "other") as running:
        yield running


@pytest.fixture(autouse=True)
def _leaves_nothing(narrow: Server) -> Iterator[None]:
    yield
    until(lambda: narrow.engine()["running"] == narrow.engine()["waiting"] == 0)
    until(lambda: narrow.metric("vllm:kv_cache_usage_perc") == 0)


def cancel(server: Server, rid: str, key: dict[str, str] = MINE) -> Answer:
    return server.request("POST", f"/v1/requests/{rid}/cancel", headers=key)


def begin(server: Server, **body: Any) -> tuple[str, Answer]:
    answer = server.post("/v1/completions", {**LONG, **body}, MINE)
    assert answer.status == 200
    return answer.headers["X-Stream-Id"], answer


def rest(answer: Answer) -> list[Any]:
    events = [json.loads(event) for event in answer.data()]  # which [DONE] is not
    assert set(events[-1]) == {"error"}
    assert events[-1]["error"]["code"] == "request_cancelled"
    return events[:-1]


def worker_of(server: Server, port: int) -> int:
    """The process that has the other end of the connection from this port."""
    wanted = f":{server.port:04X}", f":{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(wanted[0]) and fields[2].endswith(wanted[1]):
            inode = f"socket:[{fields[9]}]"
            break
    else:
        return 0  # not accepted yet
    for pid, command in descendants(server.process.pid).items():
        if "-m api_server" in command and any(
            str(link.readlink()) == inode for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
        ):
            return pid
    return 0


def connect(server: Server) -> tuple[HTTPConnection, int]:
    """A connection, and the worker that it is to."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/livez")
    connection.getresponse().read()
    worker = worker_of(server, connection.sock.getsockname()[1])
    assert worker
    return connection, worker


def test_a_stream_is_cancelled_through_another_worker(narrow: Server) -> None:
    reader, its_worker = connect(narrow)
    reader.request("POST", "/v1/completions", json.dumps({**LONG, "n": 2}).encode(), MINE)
    answer = Answer(reader)
    rid = answer.headers["X-Stream-Id"]
    assert json.loads(next(answer.data()))["id"] == rid
    others = []

    def found() -> bool:
        others.append(connect(narrow))
        return others[-1][1] != its_worker

    until(found)
    other = others[-1][0]
    other.request("POST", f"/v1/requests/{rid}/cancel", headers=MINE)
    response = other.getresponse()
    assert (response.status, json.loads(response.read())) == (200, {"id": rid, "cancelled": True})
    assert all(event["id"] == rid for event in rest(answer))
    assert cancel(narrow, rid).status == 404
    for connection, _ in others:
        connection.close()


def test_a_queued_request_is_cancelled_and_what_runs_goes_on(narrow: Server) -> None:
    running, stream = begin(narrow, n=2)
    data = stream.data()
    next(data)
    queued, waiting = begin(narrow)
    until(lambda: narrow.engine()["waiting"] == 1)
    assert cancel(narrow, queued).status == 200
    assert rest(waiting) == []
    assert "choices" in json.loads(next(data))
    assert cancel(narrow, running).status == 200
    assert json.loads(list(data)[-1])["error"]["code"] == "request_cancelled"


def test_finished_foreign_and_unknown_requests_are_404(narrow: Server) -> None:
    finished, answer = begin(narrow, max_tokens=3)
    assert len(answer.events()) >= 1
    running, stream = begin(narrow)
    unknown = "cmpl-" + "0" * 32
    for rid, key in ((finished, MINE), (running, OTHER), (unknown, MINE), ("chatcmpl" + running[4:], MINE)):
        refused = cancel(narrow, rid, key)
        assert (refused.status, refused.json()["error"]["code"]) == (404, "request_not_found")
    assert cancel(narrow, running, {}).status == 401
    assert cancel(narrow, running).status == 200
    assert rest(stream)
