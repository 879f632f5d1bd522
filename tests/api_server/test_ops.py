"""Health, version and metrics, beside a real engine core on a made-up device."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api_server.routes import API
from protocol.messages import PROTOCOL_VERSION
from protocol.metrics import CACHE_CONFIG, COUNTERS, FINISHED, GAUGES, HISTOGRAMS
from tests.api_server.live import LiveServer, until
from tests.fakes import MadeUpDevice, MadeUpEngine


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/e.sock"


@pytest.fixture
def server(endpoint: str) -> Iterator[LiveServer]:
    with LiveServer(engine=endpoint) as live:
        yield live


def health(server: LiveServer, target: str = "/readyz") -> tuple[int, Any]:
    answer = server.get(target)
    return answer.status, json.loads(answer.body)


def test_without_an_engine_the_process_lives_and_is_not_ready(server: LiveServer) -> None:
    assert server.get("/livez").status == 200
    for target in ("/readyz", "/health", "/ping", "/startupz"):
        status, body = health(server, target)
        assert (status, body["status"], body["draining"]) == (503, "loading", False)
        assert body["engine"]["state"] == "connecting"


def test_an_engine_makes_it_ready_and_its_loss_unready_but_not_unstarted(endpoint: str, server: LiveServer) -> None:
    with MadeUpEngine(endpoint, epoch=7):
        until(lambda: health(server)[0] == 200)
        _, body = health(server)
        assert set(body) == {"status", "engine", "draining"}
        assert set(body["engine"]) == {"state", "epoch", "heartbeat_age_s", "last_step_age_s", "running", "waiting"}
        assert (body["status"], body["engine"]["state"], body["engine"]["epoch"]) == ("ok", "ready", 7)
        assert [health(server, target)[0] for target in ("/health", "/ping", "/startupz")] == [200, 200, 200]
    until(lambda: health(server)[0] == 503)
    assert health(server)[1]["status"] == "engine down"
    assert health(server, "/startupz")[0] == 200


def test_the_deep_check_generates_one_token_and_remembers_it(endpoint: str, server: LiveServer) -> None:
    device = MadeUpDevice()
    with MadeUpEngine(endpoint, device=device):
        until(lambda: health(server)[0] == 200)
        before = device.steps
        assert [health(server, "/readyz?deep=1")[0] for _ in range(3)] == [200, 200, 200]
        assert device.steps > before
        steps = device.steps
        assert health(server, "/health?deep=1")[0] == 200
        assert device.steps == steps
    until(lambda: health(server)[0] == 503)
    assert health(server, "/readyz?deep=1")[1]["status"] == "engine down"


def test_the_deep_check_tells_of_an_engine_that_does_not_generate(
    endpoint: str, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api_server.canary.TIMEOUT_S", 0.1)
    device = MadeUpDevice()
    with MadeUpEngine(endpoint, device=device):
        until(lambda: health(server)[0] == 200)
        device.gate.clear()
        status, body = health(server, "/readyz?deep=1")
        assert (status, body["status"]) == (503, "deep check failed: no token within 0.1 s")
        device.gate.set()


def value(server: LiveServer, series: str) -> float:
    lines = [line for line in server.get("/metrics").body.decode().splitlines() if line.startswith(series)]
    assert len(lines) == 1, (series, lines)
    return float(lines[0].rpartition(" ")[2])


def test_every_series_is_there_from_the_start(endpoint: str, server: LiveServer) -> None:
    def names() -> set[str]:
        lines = server.get("/metrics").body.decode().splitlines()
        return {line.partition("{")[0] for line in lines if not line.startswith("#")}

    before = names()
    with MadeUpEngine(endpoint, epoch=7):
        until(lambda: value(server, "tokenwire_engine_up") == 1)
        assert names() == before
        assert value(server, "tokenwire_engine_epoch") == 7
    assert {*GAUGES, *COUNTERS} <= before
    assert {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")} <= before
    assert {FINISHED, CACHE_CONFIG, "tokenwire_heartbeat_age_seconds"} <= before


def test_a_dead_engine_runs_nothing_but_its_counters_stay(endpoint: str) -> None:
    with LiveServer(API, engine=endpoint) as server, MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.01)) as engine:
        until(lambda: health(server)[0] == 200)
        body = b'{"prompt": [1, 2, 3], "max_tokens": 500, "ignore_eos": true, "stream": true}'
        with server.connect() as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.send(head + body)
            until(lambda: value(server, "vllm:num_requests_running") == 1)
            assert value(server, "vllm:kv_cache_usage_perc") > 0
            engine.kill()
            until(lambda: value(server, "tokenwire_engine_up") == 0)
            assert value(server, "vllm:num_requests_running") == 0
            assert value(server, "vllm:kv_cache_usage_perc") == 0
            assert value(server, "vllm:prompt_tokens_total") == 3


def test_metrics_are_prometheus_text(endpoint: str, server: LiveServer) -> None:
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"
    assert families["vllm:request_success"].type == "counter"
    samples = [sample for family in families.values() for sample in family.samples]
    of_engine = [sample for sample in samples if sample.name.startswith("vllm:")]
    assert {(sample.labels["engine"], sample.labels["model_name"]) for sample in of_engine} == {("0", "")}


def test_version(server: LiveServer) -> None:
    told = json.loads(server.get("/version").body)
    assert set(told) == {"version", "protocol_version"}
    assert told["protocol_version"] == PROTOCOL_VERSION


def test_a_health_only_process_serves_nothing_else(endpoint: str) -> None:
    with LiveServer(engine=endpoint, health_only=True) as server:
        assert server.get("/livez").status == 200
        assert server.get("/v1/models").status == 404
