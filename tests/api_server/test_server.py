"""What the server does around every request: bounds, labels, error bodies, and the way out."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from api_server.app import create_app
from api_server.config import Config
from api_server.routes import API, HEALTH, PAGES
from tests.api_server.held import Held
from tests.api_server.live import NOWHERE, BareClient, LiveServer, endpoint, until

ROOT = Path(__file__).parents[2]


async def hello(request: Request) -> Response:
    return Response("hello")


async def broken(request: Request) -> Response:
    raise ZeroDivisionError("secret")


def code(body: bytes) -> Any:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    endpoints = [endpoint("/hello", hello), endpoint("/broken", broken), endpoint("/only-get", hello, "GET")]
    with LiveServer(endpoints, header_timeout_s=0.3, api_keys=("k",)) as live:
        yield live


KEY = "x-api-key: k\r\n"


# ---------------------------------------------------------------------------------------------------- bounds


def header_block(size: int) -> bytes:
    """A request of exactly `size` bytes."""
    head, end = f"GET /hello HTTP/1.1\r\n{KEY}a: ", "\r\n\r\n"
    return f"{head}{'x' * (size - len(head) - len(end))}{end}".encode()


def fields(count: int) -> bytes:
    """A request with that many header fields."""
    return b"GET /hello HTTP/1.1\r\n" + KEY.encode() + b"a: b\r\n" * (count - 1) + b"\r\n"


def test_headers_up_to_the_limit_pass(server: LiveServer) -> None:
    assert server.ask(header_block(32 << 10)).status == 200
    assert server.ask(fields(64)).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        header_block((32 << 10) + 1),
        fields(65),
        b"GET /" + b"x" * (33 << 10) + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\na: " + b"x" * (600 << 10),
        b"GET / HTTP/1.1\r\n" + b"x" * (600 << 10),
    ],
    ids=["size", "count", "target", "endless value", "endless name"],
)
def test_headers_beyond_the_limit_are_431(server: LiveServer, request_bytes: bytes) -> None:
    answer = server.ask(request_bytes)
    assert (answer.status, code(answer.body), answer.headers["connection"]) == (431, "headers_too_large", "close")


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x"])
def test_headers_that_do_not_come_are_408(server: LiveServer, begun: bytes) -> None:
    with server.connect() as client:
        client.send(begun)
        answer = client.answer()
        assert (answer.status, code(answer.body)) == (408, "request_timeout")
        assert client.rest() == b""


def test_the_time_limit_holds_for_later_requests_too(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(f"GET /hello HTTP/1.1\r\n{KEY}\r\n".encode())
        assert client.answer().status == 200
        client.send(b"GET /hello HTTP/1.1\r\n")
        assert client.answer().status == 408


def test_bytes_that_begin_no_request_don_t_keep_a_connection(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(f"GET /hello HTTP/1.1\r\n{KEY}\r\n".encode())
        assert client.answer().status == 200
        client.send(b"\r\n")
        assert client.rest() == b""


def test_an_idle_connection_is_kept_longer_than_the_header_limit(server: LiveServer) -> None:
    with server.connect() as client, server.connect() as silent:
        client.send(f"GET /hello HTTP/1.1\r\n{KEY}\r\n".encode())
        assert client.answer().status == 200
        assert silent.answer().status == 408  # by then the limit is over for the other, too
        client.send(f"GET /hello HTTP/1.1\r\n{KEY}\r\n".encode())
        assert client.answer().status == 200


def test_an_idle_connection_is_closed_in_the_end_and_a_busy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_server.server.KEEP_ALIVE_S", 0.3)
    held = Held()
    with (
        LiveServer([endpoint("/held", held.handler)]) as server,
        server.connect() as idle,
        server.connect() as busy,
    ):
        for client in (busy, idle):
            client.send(b"GET /livez HTTP/1.1\r\n\r\n")
            assert client.answer().status == 200
        busy.send(b"GET /held HTTP/1.1\r\n\r\n")
        busy.until(b"data: 0\n\n\r\n")
        assert idle.rest() == b""
        assert not busy.ended


def test_what_is_no_http_is_400_with_our_body(server: LiveServer) -> None:
    answer = server.ask(b"\x16\x03\x01 hello\r\n\r\n")
    assert (answer.status, code(answer.body)) == (400, "invalid_request_error")


def test_pipelined_requests_are_answered_in_order(server: LiveServer) -> None:
    with server.connect() as client:
        client.send(f"GET /hello HTTP/1.1\r\n{KEY}\r\nGET /nope HTTP/1.1\r\n{KEY}\r\n".encode())
        assert [client.answer().status, client.answer().status] == [200, 404]


# ---------------------------------------------------------------------------------------------------- every request


def test_the_label_is_echoed_if_it_is_harmless(server: LiveServer) -> None:
    for good in ("a.B-9_", "Root=1-67891233-abcdef;Sampled=1", "a:b/c+d@e==", '"~!', "x" * 256):
        assert server.get("/livez", f"X-Request-Id: {good}\r\n").headers["x-request-id"] == good
    for bad in ("a b", "x" * 257, "é", ""):
        made = server.get("/livez", f"X-Request-Id: {bad}\r\n").headers["x-request-id"]
        assert len(made) == 32
        assert made != server.get("/livez").headers["x-request-id"]


def test_wrong_turns_have_our_error_body(server: LiveServer) -> None:
    for target, headers, status, expected in (
        ("/hello", "", 401, "invalid_api_key"),
        ("/nope", KEY, 404, "not_found"),
        ("/hello/", KEY, 404, "not_found"),
        ("/broken", KEY, 500, "internal_error"),
    ):
        answer = server.get(target, headers)
        assert (answer.status, code(answer.body)) == (status, expected)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        assert b"secret" not in answer.body
    answer = server.post("/only-get", b"", KEY)
    assert (answer.status, code(answer.body), answer.headers["allow"]) == (405, "method_not_allowed", "GET")


def test_our_bugs_are_logged_with_their_traceback(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    server.get("/broken", KEY)
    assert "ZeroDivisionError: secret" in caplog.text


def test_the_log_line_leaves_out_the_query(server: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "tokenwire.request"):
        server.get("/v1/completions/stream?access_token=k&prompt=hush")
        until(lambda: "GET /v1/completions/stream 404" in caplog.text)
    assert "hush" not in caplog.text
    assert "access_token" not in caplog.text


def test_the_server_does_not_name_itself(server: LiveServer) -> None:
    assert "server" not in server.get("/livez").headers


def test_cors_is_off_until_it_is_asked_for(server: LiveServer) -> None:
    preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n"
    assert "access-control-allow-origin" not in server.get("/livez", preflight).headers
    with LiveServer(cors_origins=("https://a.example",), api_keys=("k",)) as open_server:
        ask = f"OPTIONS /generate HTTP/1.1\r\n{preflight}\r\n".encode()
        assert open_server.ask(ask).headers["access-control-allow-origin"] == "https://a.example"
        refused = open_server.post("/generate", b"", "Origin: https://a.example\r\n")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")


def test_no_get_that_generates_answers_head() -> None:
    app = create_app(Config(engine=NOWHERE))
    methods = {(route.path, method) for route in app.routes for method in getattr(route, "methods", ())}  # type: ignore[attr-defined]
    assert ("/v1/completions/stream", "HEAD") not in methods
    assert methods == {(each.path, method) for each in (*HEALTH, *API, *PAGES) for method in each.methods}


# ---------------------------------------------------------------------------------------------------- the way out


def test_draining_finishes_what_runs_and_refuses_what_is_new() -> None:
    held = Held()
    with LiveServer([endpoint("/held", held.handler), endpoint("/hello", hello)]) as server, server.connect() as client:
        client.send(b"GET /held HTTP/1.1\r\n\r\n")
        client.until(b"data: 0\n\n\r\n")
        server.stop()
        until(lambda: server.frontend.draining)
        answer = server.get("/hello")
        assert (answer.status, code(answer.body), answer.headers["retry-after"]) == (503, "draining", "5")
        assert (server.get("/livez").status, server.get("/readyz").status) == (200, 503)
        assert server.loop is not None
        server.loop.call_soon_threadsafe(held.go.set)
        assert client.rest() == b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
        server.join()


def test_idle_connections_do_not_hold_up_the_end() -> None:
    with LiveServer() as server, server.connect(), server.connect() as used:
        used.send(b"GET /livez HTTP/1.1\r\n\r\n")
        assert used.answer().status == 200
        server.stop()
        server.join()
        assert used.rest() == b""


def test_a_second_signal_means_now() -> None:
    held = Held()
    with LiveServer([endpoint("/held", held.handler)]) as server, server.connect() as client:
        client.send(b"GET /held HTTP/1.1\r\n\r\n")
        client.until(b"data: 0\n\n\r\n")
        server.stop()
        until(lambda: server.frontend.draining)
        assert not client.ended
        server.stop()
        server.join()


def test_the_grace_keeps_the_listener_open() -> None:
    with LiveServer([endpoint("/hello", hello)], drain_grace_s=0.5) as server:
        server.stop()
        until(lambda: server.frontend.draining)
        assert server.get("/hello").status == 503
        server.join()
        with pytest.raises(ConnectionRefusedError):
            BareClient(server.port)


def test_a_health_frontend_tells_of_the_drain_until_it_is_ended() -> None:
    with LiveServer(health_only=True, shutdown_timeout_s=0.0) as server:
        server.stop()
        until(lambda: server.frontend.draining)
        for _ in range(20):
            assert (server.get("/livez").status, server.get("/readyz").status) == (200, 503)
        server.stop()
        server.join()


# ---------------------------------------------------------------------------------------------------- the process


def start(tmp_path: Path, *arguments: str, pass_fds: tuple[int, ...] = (), **variables: str) -> "subprocess.Popen[str]":
    environ = {"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "api_server", *arguments]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds)


def test_the_process_serves_an_inherited_socket_and_exits_with_0(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready, ready_child = os.pipe()
        fds = (listener.fileno(), ready_child)
        variables = {"TOKENWIRE_LISTEN_FD": str(fds[0]), "TOKENWIRE_READY_FD": str(fds[1]), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "api_server"],
            env={"TOKENWIRE_ENGINE": f"ipc://{tmp_path}/e.sock", **variables},
            pass_fds=fds,
        )
        os.close(ready_child)
        assert os.read(ready, 2) == b"1"
        assert os.read(ready, 2) == b""
        os.close(ready)
        client = BareClient(listener.getsockname()[1])
        client.send(b"GET /livez HTTP/1.1\r\n\r\n")
        assert client.answer().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        client.close()


def test_a_bad_variable_is_one_line_and_exit_2(tmp_path: Path) -> None:
    process = start(tmp_path, TOKENWIRE_STALL_TIMEOUT="soon")
    _, told = process.communicate(timeout=20)
    assert process.returncode == 2
    assert told.startswith("api_server: TOKENWIRE_STALL_TIMEOUT: ")
    assert told.count("\n") == 1


def test_a_hang_up_is_the_supervisor_s_business(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        process = start(tmp_path, pass_fds=(descriptor,), TOKENWIRE_LISTEN_FD=str(descriptor))
        client = BareClient(listener.getsockname()[1])
        for _ in range(2):
            client.send(b"GET /livez HTTP/1.1\r\n\r\n")
            assert client.answer().status == 200
            process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        client.close()
    assert process.stderr is not None
    process.stderr.close()


def test_a_taken_port_is_exit_3(server: LiveServer, tmp_path: Path) -> None:
    process = start(tmp_path, "--port", str(server.port))
    _, told = process.communicate(timeout=20)
    assert process.returncode == 3
    assert str(server.port) in told.splitlines()[-1]
    assert "Errno" not in told


def test_the_heap_is_frozen_once_the_server_runs(server: LiveServer) -> None:
    assert gc.get_freeze_count() > 0
