"""POST /v1/requests/{id}/cancel, and what becomes of the request that it names."""

import json
from pathlib import Path

import pytest

from api_server.routes import API
from tests.api_server.live import Answer, BareClient, LiveServer, until
from tests.api_server.serving import serving
from tests.fakes import MadeUpDevice

UNKNOWN = "cmpl-" + "0" * 32
ENDLESS = {"prompt": "Hello world", "max_tokens": 200, "ignore_eos": True, "n": 2}


def cancel(server: LiveServer, rid: str, headers: str = "") -> Answer:
    return server.post(f"/v1/requests/{rid}/cancel", b"", headers)


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error"]["code"]


def begin(server: LiveServer, client: BareClient, headers: str = "", *, stream: bool) -> None:
    body = json.dumps({**ENDLESS, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    client.send(head.encode() + body)


def stream_id(client: BareClient) -> str:
    head = client.until(b"\r\n\r\n").decode()
    return head.split("x-stream-id: ")[1].split("\r\n")[0]


@pytest.mark.parametrize("accept", ["", "Accept: application/x-ndjson\r\n"])
def test_a_stream_ends_with_the_error_and_no_done(tmp_path: Path, accept: str) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), server.connect() as client:
        begin(server, client, accept, stream=True)
        rid = stream_id(client)
        client.until(b"Hello")
        answer = cancel(server, rid)
        assert (answer.status, json.loads(answer.body)) == (200, {"id": rid, "cancelled": True})
        rest = client.until(b"\r\n0\r\n\r\n")
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)
        again = cancel(server, rid)
    last = rest.removesuffix(b"\r\n0\r\n\r\n").strip().splitlines()[-1].removeprefix(b"data: ")
    assert json.loads(last)["error"]["code"] == "request_cancelled"
    assert b"[DONE]" not in rest
    assert code(again) == (404, "request_not_found")


def test_an_answer_in_one_piece_is_499(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), server.connect() as client:
        begin(server, client, stream=False)
        until(lambda: bool(engine.scheduler.running))
        assert cancel(server, engine.scheduler.running[0].rid).status == 200
        assert code(client.answer()) == (499, "request_cancelled")
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)


def test_a_key_cancels_its_own_requests_alone(tmp_path: Path) -> None:
    with (
        serving(tmp_path, MadeUpDevice(step_s=0.02), api_keys=("k1", "k2")) as (server, _),
        server.connect() as client,
    ):
        begin(server, client, "X-Api-Key: k1\r\n", stream=True)
        rid = stream_id(client)
        foreign, unknown = cancel(server, rid, "X-Api-Key: k2\r\n"), cancel(server, UNKNOWN, "X-Api-Key: k2\r\n")
        assert code(foreign) == code(unknown) == (404, "request_not_found")
        assert foreign.body == unknown.body
        assert cancel(server, rid, "X-Api-Key: k1\r\n").status == 200


def test_a_drain_waits_for_what_may_still_be_cancelled(tmp_path: Path) -> None:
    with serving(tmp_path, MadeUpDevice(step_s=0.02)) as (server, engine), server.connect() as client:
        begin(server, client, stream=True)
        rid = stream_id(client)
        server.stop()
        until(lambda: server.frontend.draining)
        assert cancel(server, rid).status == 200
        assert b'"code":"request_cancelled"' in client.rest()
        server.join()
        until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)


@pytest.mark.parametrize("rid", [UNKNOWN, "x", "x" * 128, "x" * 129, "%00", "%ff%fe", "%F0%9F%8E%89" * 128, "a%2Fb"])
def test_any_other_id_is_404(tmp_path: Path, rid: str) -> None:
    with serving(tmp_path) as (server, _):
        answer = cancel(server, rid)
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


def test_without_an_engine_it_is_503() -> None:
    with LiveServer(API) as server:
        answer = cancel(server, UNKNOWN)
    assert code(answer) == (503, "engine_loading")
    assert answer.headers["retry-after"] == "2"


def test_a_body_means_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        answer = server.post(f"/v1/requests/{UNKNOWN}/cancel", b"x=1", "Content-Type: text/plain\r\n")
    assert code(answer) == (404, "request_not_found")
