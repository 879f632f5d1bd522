"""What GET /metrics has to have, and what makes it move: a real frontend before a real engine core, whose device alone
is made up."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_server.routes import API, HEALTH
from tests.api_server.live import BareClient, LiveServer, until
from tests.api_server.scraping import ENDLESS, LONG, post, samples, value
from tests.api_server.serving import serving
from tests.api_server.sockets import SocketClient
from tests.fakes import MadeUpDevice

VLLM, ENGINE, PLAIN = {"model_name", "engine"}, {"engine"}, set[str]()
CONTRACT = {
    "gauge": {
        "vllm:num_requests_running": VLLM,
        "vllm:num_requests_waiting": VLLM,
        "vllm:kv_cache_usage_perc": VLLM,
        "vllm:cache_config_info": VLLM | {"block_size", "num_gpu_blocks"},
        "tokenwire_engine_up": ENGINE,
        "tokenwire_engine_epoch": ENGINE,
        "tokenwire_heartbeat_age_seconds": ENGINE,
        "tokenwire_streams": PLAIN,
    },
    "counter": {
        "vllm:prompt_tokens_total": VLLM,
        "vllm:generation_tokens_total": VLLM,
        "vllm:request_success_total": VLLM | {"finished_reason"},
        "vllm:num_preemptions_total": VLLM,
        "vllm:prefix_cache_queries_total": VLLM,
        "vllm:prefix_cache_hits_total": VLLM,
        "tokenwire_engine_restarts_total": ENGINE,
        "tokenwire_aborts_total": ENGINE,
        "tokenwire_client_disconnects_total": PLAIN,
        "tokenwire_coalesced_tokens_total": PLAIN,
        "tokenwire_resumed_streams_total": PLAIN,
        "tokenwire_replayed_requests_total": PLAIN,
        "tokenwire_http_requests_total": {"route", "code"},
    },
    "histogram": {
        "vllm:time_to_first_token_seconds": VLLM,
        "vllm:inter_token_latency_seconds": VLLM,
        "vllm:e2e_request_latency_seconds": VLLM,
        "vllm:request_queue_time_seconds": VLLM,
        "vllm:request_prefill_time_seconds": VLLM,
        "vllm:request_decode_time_seconds": VLLM,
        "vllm:request_prompt_tokens": VLLM,
        "vllm:request_generation_tokens": VLLM,
        "vllm:iteration_tokens_total": VLLM,
        "tokenwire_abort_to_free_seconds": ENGINE,
        "tokenwire_send_stall_seconds": PLAIN,
        "tokenwire_event_loop_lag_seconds": PLAIN,
    },
}


def test_every_series_is_there_before_the_engine_and_with_it(tmp_path: Path) -> None:
    with LiveServer(API, engine=f"ipc://{tmp_path}/none.sock", model_name="made-up") as server:
        check(server)
        routes = {each.labels["route"] for each in samples(server) if each.name == "tokenwire_http_requests_total"}
    assert routes == {endpoint.path for endpoint in HEALTH + API} | {"other"}
    with serving(tmp_path, card=LONG) as (server, _):
        check(server)


def check(server: LiveServer) -> None:
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics").body.decode())}
    found: dict[str, dict[str, set[str]]] = {"gauge": {}, "counter": {}, "histogram": {}}
    for name, family in families.items():
        assert family.documentation
        labels = {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples}
        [one] = labels
        found[family.type][name + ("_total" if family.type == "counter" else "")] = set(one)
        if family.type == "histogram":
            parts = [sample.name.removeprefix(name) for sample in family.samples]
            assert parts[-2:] == ["_sum", "_count"]
            assert set(parts[:-2]) == {"_bucket"}
            assert len(parts) > 10
            assert family.samples[-3].labels["le"] == "+Inf"
    assert found == CONTRACT
    names = {sample.labels["model_name"] for family in families.values() for sample in family.samples
             if "model_name" in sample.labels}  # fmt: skip
    assert names == {"made-up"}
    reasons = {sample.labels["finished_reason"] for sample in families["vllm:request_success"].samples}
    assert reasons == {"stop", "length", "abort", "error"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[LiveServer]:
    with serving(tmp_path, MadeUpDevice(step_s=0.005), card=LONG, num_blocks=4001) as (server, _):
        yield server


def test_answers_count_by_route_and_status(served: LiveServer) -> None:
    def count(route: str, code: int) -> float:
        return value(served, "tokenwire_http_requests_total", route=route, code=str(code))

    models = count("/v1/models", 200)
    assert served.get("/v1/models").status == 200
    assert served.get("/v1/models/made-up").status == 200
    assert served.get("/v1/models/nobody/has/it").status == 404
    assert served.get("/v1/chat/completions").status == 405
    assert served.get("/no/such/path").status == 404
    assert served.get("/another").status == 404
    assert served.post("/v1/completions", b"{").status == 400
    assert count("/v1/models", 200) == models + 1
    assert [count("/v1/models/{id:path}", code) for code in (200, 404)] == [1, 1]
    assert count("/v1/chat/completions", 405) == 1
    assert count("/v1/completions", 400) == 1
    assert count("other", 404) == 2
    metrics = count("/metrics", 200)
    assert count("/metrics", 200) == metrics + 1


def test_what_the_parser_refuses_counts_too(tmp_path: Path) -> None:
    with LiveServer(API, max_body_size=1000, body_timeout_s=0.2) as server:

        def count(route: str, code: int) -> float:
            return value(server, "tokenwire_http_requests_total", route=route, code=str(code))

        assert server.ask(b"nonsense\r\n\r\n").status == 400
        assert server.ask(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 99 + b"\r\n").status == 431
        assert server.post("/v1/completions", bytes(2000)).status == 413
        late = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        assert server.ask(late).status == 408
        until(lambda: count("/tokenize", 408) == 1)
        assert [count("other", 400), count("/livez", 431), count("/v1/completions", 413)] == [1, 1, 1]
        assert value(server, "tokenwire_client_disconnects_total") == 0
        codes = {each.labels["code"] for each in samples(server) if each.name == "tokenwire_http_requests_total"}
        assert codes == {"200", "400", "408", "413", "431"}


def test_streams_are_counted_while_they_run_and_leavers_when_they_leave(served: LiveServer) -> None:
    clients = [post(served, ENDLESS) for _ in range(3)]
    whole = post(served, ENDLESS, stream=False)
    until(lambda: value(served, "vllm:num_requests_running") == 4)
    assert value(served, "tokenwire_streams") == 3
    clients[0].close()
    until(lambda: value(served, "tokenwire_streams") == 2)
    assert value(served, "tokenwire_client_disconnects_total") == 1
    whole.close()
    until(lambda: value(served, "tokenwire_http_requests_total", route="/v1/completions", code="499") == 1)
    for client in clients[1:]:
        client.close()
    until(lambda: value(served, "tokenwire_streams") == 0)
    until(lambda: value(served, "tokenwire_client_disconnects_total") == 4)
    assert value(served, "tokenwire_http_requests_total", route="/v1/completions", code="200") == 3
    until(lambda: value(served, "tokenwire_aborts_total") == 4)
    until(lambda: value(served, "tokenwire_abort_to_free_seconds_count") == 4)
    assert value(served, "vllm:request_success_total", finished_reason="abort") == 4
    assert value(served, "vllm:generation_tokens_total") > 0


def test_an_answer_that_is_read_to_its_end_is_no_leaving(served: LiveServer) -> None:
    with post(served, 3) as client:
        client.until(b"\r\n0\r\n\r\n")
    with post(served, 3, stream=False) as client:
        assert client.answer().status == 200
    until(lambda: value(served, "tokenwire_streams") == 0)
    until(lambda: value(served, "vllm:request_success_total", finished_reason="length") == 2)
    assert value(served, "tokenwire_client_disconnects_total") == 0
    assert value(served, "tokenwire_aborts_total") == 0


def test_generations_on_a_socket_are_streams(served: LiveServer) -> None:
    body = {"prompt": [1, 2, 3], "max_tokens": ENDLESS, "ignore_eos": True}
    with SocketClient(served.port) as client:
        for name in "ab":
            client.say({"type": "generate", "id": name, "body": body})
        until(lambda: value(served, "tokenwire_streams") == 2)
        client.say({"type": "cancel", "id": "a"})
        until(lambda: value(served, "tokenwire_streams") == 1)
    until(lambda: value(served, "tokenwire_streams") == 0)
    assert value(served, "tokenwire_http_requests_total", route="/v1/ws", code="101") == 1


def test_a_reader_that_stops_shows(tmp_path: Path) -> None:
    kept = serving(tmp_path, card=LONG, num_blocks=4001)
    with kept as (server, _), BareClient(server.port, receive_buffer=2048) as client:
        body = b'{"prompt": [97], "max_tokens": 4000, "n": 8, "ignore_eos": true, "stream": true}'
        client.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: value(server, "vllm:request_success_total", finished_reason="length") == 8)
        client.until(b"data: [DONE]\n\n")
        assert value(server, "tokenwire_coalesced_tokens_total") > 0
        until(lambda: value(server, "tokenwire_send_stall_seconds_count") > 0)
        assert value(server, "tokenwire_send_stall_seconds_sum") > 0


def test_the_loop_is_watched(served: LiveServer) -> None:
    before = value(served, "tokenwire_event_loop_lag_seconds_count")
    until(lambda: value(served, "tokenwire_event_loop_lag_seconds_count") > before + 2)


def test_a_descriptor_that_is_no_memory_makes_it_count_alone() -> None:
    """Metrics are no reason not to serve."""
    with socket.socket() as other, LiveServer(API, board_fd=other.fileno()) as server:
        assert server.get("/livez").status == 200
        assert value(server, "tokenwire_http_requests_total", route="/livez", code="200") == 1


def test_a_stream_that_is_resumed_counts(served: LiveServer) -> None:
    options = b'"stream": true, "stream_options": {"resumable": true}'
    answer = served.post("/v1/completions", b'{"prompt": [97], "max_tokens": 9, "ignore_eos": true, %b}' % options)
    assert b"[DONE]" in answer.body
    assert served.get(f"/v1/streams/{answer.headers['x-stream-id']}?after=3").status == 200
    assert served.get("/v1/streams/nobody?after=3").status == 404
    assert value(served, "tokenwire_resumed_streams_total") == 1
    assert value(served, "tokenwire_http_requests_total", route="/v1/streams/{id}", code="200") == 1
