"""Starting, stopping and dying: what is left behind, and what the operator reads."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BloomConfig, LlamaConfig

from tests.e2e.server import ROOT, Server, alive, descendants, free_port, until

PATIENCE_S = 5.0  # no process outlives its parent by more


def run(*arguments: str, timeout_s: float = 90, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def fresh() -> Iterator[Server]:
    with Server("--api-workers", "2") as running:
        yield running


def test_killing_serve_leaves_nothing(fresh: Server) -> None:
    pids = descendants(fresh.process.pid)
    assert sum("-m engine_core" in command for command in pids.values()) == 1
    assert sum("-m api_server" in command for command in pids.values()) == 2
    stream = fresh.post("/v1/completions", {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True})
    next(stream.data())
    fresh.process.send_signal(signal.SIGKILL)
    fresh.process.wait()
    until(lambda: not any(alive(pid) for pid in pids), PATIENCE_S)


def test_termination_lets_streams_finish_and_refuses_new_ones(fresh: Server) -> None:
    pids = descendants(fresh.process.pid)
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    stream = fresh.post("/v1/completions", body)
    data = stream.data()
    next(data)
    fresh.process.send_signal(signal.SIGTERM)
    until(lambda: fresh.get("/readyz").status == 503)
    assert fresh.get("/livez").status == 200
    refused = fresh.post("/v1/completions", {"prompt": "x"})
    assert refused.status == 503
    assert refused.json()["error"]["code"] == "draining"
    assert refused.headers["Retry-After"].isdigit()
    events = list(data)
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert fresh.process.wait(20) == 0
    until(lambda: not any(alive(pid) for pid in pids), PATIENCE_S)


def test_a_second_signal_means_now(fresh: Server) -> None:
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True, "n": 8}
    stream = fresh.post("/v1/completions", body)
    next(stream.data())
    fresh.process.send_signal(signal.SIGINT)
    until(lambda: fresh.get("/readyz").status == 503)
    fresh.process.send_signal(signal.SIGINT)
    fresh.process.wait(PATIENCE_S)


def test_a_dead_engine_is_replaced_and_says_so(fresh: Server) -> None:
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    stream = fresh.post("/v1/completions", body)
    data = stream.data()
    next(data)
    os.kill(fresh.pid_of("engine_core"), signal.SIGKILL)
    last = list(data)[-1]
    assert json.loads(last)["error"]["code"] == "engine_restarting"
    until(lambda: fresh.get("/readyz").status == 200, 60)
    assert fresh.engine()["epoch"] == 2
    assert fresh.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200


def test_a_dead_frontend_is_replaced_and_its_requests_end(fresh: Server) -> None:
    until(lambda: fresh.engine()["running"] == 0)
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    stream = fresh.post("/v1/completions", body)
    next(stream.data())
    frontends = [pid for pid, command in descendants(fresh.process.pid).items() if "-m api_server" in command]
    for pid in frontends:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len([1 for command in descendants(fresh.process.pid).values() if "-m api_server" in command]) == 2)
    until(lambda: fresh._is_ready() and fresh.engine()["running"] == 0, 30)


def test_livez_answers_while_the_engine_is_in_a_long_step(tmp_path: Path) -> None:
    """A prefill step of seconds, on a model that is large enough for it, without weights or tokenizer."""
    LlamaConfig(
        vocab_size=4000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=8192,
    ).save_pretrained(tmp_path)  # fmt: skip
    options = ("--load-format", "dummy", "--dtype", "float32", "--max-num-batched-tokens", "4096")
    with Server(str(tmp_path), *options) as server:
        answers = []
        body = {"prompt": [7] * 4000, "max_tokens": 1}
        request = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", body)))
        request.start()
        until(lambda: server.engine()["running"] == 1)
        during = []
        while request.is_alive():
            started = time.monotonic()
            assert server.get("/livez").status == 200
            assert server.get("/readyz").status == 200, "a long step with a lease is no reason to be taken out"
            during.append(time.monotonic() - started)
            time.sleep(0.02)
        request.join()
    assert answers[0].status == 200
    assert len(during) > 20, "the step was too short to show anything"
    assert sorted(during)[len(during) // 2] < 0.5, "the step, which takes many times as long, is in the way"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["serve", "/no/such/folder"], 3, ["/no/such/folder"]),
        (["serve", "--port", "99999"], 2, ["--port"]),
        (["serve", "--port", "many"], 2, ["--port"]),
        (["serve", "--no-such-flag"], 2, ["--no-such-flag"]),
        (["serve", "--dtype", "float7"], 2, ["--dtype"]),
        (["serve", "--kv-cache-memory", "1Q"], 2, ["--kv-cache-memory"]),
        (["serve", "--kv-cache-memory", "1K"], 3, ["--kv-cache-memory", "KiB"]),
        (["serve", "--kv-cache-memory", "100000G"], 3, ["--kv-cache-memory"]),
        (["serve", "--max-model-len", "999999"], 3, ["--max-model-len", "2048"]),
        (["serve", "--device", "cuda"], 3, ["--device cuda"]),
        (["engine"], 2, ["--listen"]),
        (["engine", "--listen", "tcp://0.0.0.0:5555"], 2, ["tcp"]),
        (["api"], 2, ["--engine"]),
        (["paint"], 2, ["paint"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_can_not_start_says_why(arguments: list[str], status: int, words: list[str]) -> None:
    if arguments[0] == "serve" and "--port" not in arguments:
        arguments = [*arguments, "--port", str(free_port())]
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-2:]
    assert all(word in " ".join(last) for word in words), done.stderr
    if status == 2:
        assert len(done.stderr.strip().splitlines()) <= 2


def test_a_bad_variable_is_named() -> None:
    done = run("serve", TOKENWIRE_MAX_NUM_SEQS="lots")
    assert done.returncode == 2
    assert "TOKENWIRE_MAX_NUM_SEQS" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port))
    assert done.returncode == 3
    assert str(port) in done.stderr.splitlines()[-1]


def test_an_unsupported_architecture(tmp_path: Path) -> None:
    BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2).save_pretrained(tmp_path)
    done = run("serve", str(tmp_path), "--load-format", "dummy", "--port", str(free_port()))
    assert done.returncode == 3
    assert "bloom" in done.stderr.splitlines()[-1]


def test_a_model_too_large(tmp_path: Path) -> None:
    LlamaConfig(hidden_size=16384, intermediate_size=65536, num_hidden_layers=200).save_pretrained(tmp_path)
    done = run("serve", str(tmp_path), "--load-format", "dummy", "--port", str(free_port()))
    assert done.returncode == 3
    assert "GiB" in done.stderr.splitlines()[-1] or "TiB" in done.stderr.splitlines()[-1]
