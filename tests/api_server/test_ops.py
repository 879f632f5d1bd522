"""Health, version and metrics, beside a real engine core on a made-up device."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import PROTOCOL_VERSION
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


def test_metrics_are_the_engines_and_ours(endpoint: str, server: LiveServer) -> None:
    assert b"tokenwire_engine_up 0\n" in server.get("/metrics").body
    with MadeUpEngine(endpoint, epoch=7):
        until(lambda: b"vllm:num_requests_running" in server.get("/metrics").body)
        answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    assert "tokenwire_engine_up 1" in lines
    assert "tokenwire_engine_epoch 7" in lines
    assert any(line.startswith("tokenwire_heartbeat_age_seconds 0.") for line in lines)


def test_version(server: LiveServer) -> None:
    told = json.loads(server.get("/version").body)
    assert set(told) == {"version", "protocol_version"}
    assert told["protocol_version"] == PROTOCOL_VERSION


def test_a_health_only_process_serves_nothing_else(endpoint: str) -> None:
    with LiveServer(engine=endpoint, health_only=True) as server:
        assert server.get("/livez").status == 200
        assert server.get("/v1/models").status == 404
