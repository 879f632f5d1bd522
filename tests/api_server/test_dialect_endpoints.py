"""/v1/responses and /v1/messages from body to bytes, in process: what a renderer alone does not show."""

import json
from pathlib import Path
from typing import Any

import pytest

from api_server.errors import ANTHROPIC_TYPES, TABLE, ApiError
from api_server.routes import API
from tests.api_server.live import LiveServer
from tests.api_server.test_endpoints import ANSWER, MESSAGES, TOKENIZER, App, Reply
from tests.api_server.vocabularies import card
from tests.fakes import MadeUpDevice, MadeUpEngine

RESPONSES, ANTHROPIC, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
RESPONSE = {"input": "hi"}
MESSAGE = {"messages": MESSAGES, "max_tokens": 20}


@pytest.fixture
def app() -> App:
    return App()


def events(reply: Reply) -> list[Any]:
    return [json.loads(line[6:]) for line in reply.body.decode().split("\n") if line.startswith("data: ")]


def test_a_response_streams_and_its_first_events_do_not_wait(app: App) -> None:
    reply = app("POST", RESPONSES, {**RESPONSE, "stream": True})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    rid = app.engine.submissions[0].rid
    assert rid.startswith("resp_")
    assert reply.headers["x-stream-id"] == rid
    assert reply.writes[0].count(b"event: ") == 2
    last = events(reply)[-1]
    assert (last["type"], last["response"]["id"]) == ("response.completed", rid)
    assert last["response"]["output"][0]["content"][0]["text"] == "Hello world, the end"
    assert app.engine.streams[0].closed


def test_a_message_streams(app: App) -> None:
    reply = app("POST", ANTHROPIC, {**MESSAGE, "stream": True})
    rid = app.engine.submissions[0].rid
    assert rid.startswith("msg_")
    assert reply.headers["x-stream-id"] == rid
    found = events(reply)
    assert found[0]["message"]["id"] == rid
    assert found[0]["message"]["usage"]["cache_read_input_tokens"] == 1  # the first token has told it
    texts = [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(texts) == "Hello world, the end"
    assert found[-1] == {"type": "message_stop"}
    assert app.engine.streams[0].closed


def test_whole_answers(app: App) -> None:
    response = app("POST", RESPONSES, RESPONSE).json()
    assert response["output"][0]["content"][0]["text"] == "Hello world, the end"
    message = app("POST", ANTHROPIC, MESSAGE).json()
    assert message["content"] == [{"type": "text", "text": "Hello world, the end"}]
    assert [made.rid for made in app.engine.submissions] == [response["id"], message["id"]]
    assert app.engine.submissions[0].prompts == app.engine.submissions[1].prompts


@pytest.mark.parametrize("path", [RESPONSES, ANTHROPIC])
def test_lines_for_who_asks_for_them(app: App, path: str) -> None:
    body = {**RESPONSE, **MESSAGE, "stream": True}
    reply = app("POST", path, body, accept="application/x-ndjson")
    assert reply.headers["content-type"] == "application/x-ndjson"
    kinds = [json.loads(line)["type"] for line in reply.body.splitlines()]
    assert kinds == [event["type"] for event in events(app("POST", path, body))]


def test_a_failure_in_a_response_is_told_as_its_events(app: App) -> None:
    app.engine.fails = 2
    *_, failed, error = events(app("POST", RESPONSES, {**RESPONSE, "stream": True}))
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["output"][0]["content"][0]["text"] == TOKENIZER.decode(ANSWER[:2])
    assert error["code"] == error["error"]["code"] == "engine_crash"
    assert error["sequence_number"] == failed["sequence_number"] + 1


def test_a_failure_in_a_message_is_told_as_anthropics_error(app: App) -> None:
    app.engine.fails = 2
    reply = app("POST", ANTHROPIC, {**MESSAGE, "stream": True})
    said = {"type": "error", "error": {"type": "api_error", "message": "The engine died of this request."}}
    assert events(reply)[-1] == said
    assert reply.body.split(b"\n\n")[-2].startswith(b"event: error\n")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", ANTHROPIC, {**MESSAGE, "temperature": 3}, 400, "invalid_request_error"),
        ("POST", ANTHROPIC, b"{", 400, "invalid_request_error"),
        ("POST", ANTHROPIC, {**MESSAGE, "model": "other"}, 404, "not_found_error"),
        ("POST", ANTHROPIC + "/batches", {}, 404, "not_found_error"),
        ("GET", ANTHROPIC, None, 405, "invalid_request_error"),
        ("POST", ANTHROPIC, b" " * 5_000_000, 413, "request_too_large"),
        ("POST", COUNT, {}, 400, "invalid_request_error"),
        ("GET", COUNT, None, 405, "invalid_request_error"),
    ],
)
def test_errors_on_anthropics_paths_have_its_shape(
    app: App, method: str, path: str, body: Any, status: int, kind: str
) -> None:
    reply = app(method, path, body)
    assert reply.status == status
    said = reply.json()
    assert (said["type"], said["error"]["type"]) == ("error", kind)
    assert set(said["error"]) == {"type", "message"}
    assert reply.headers["content-length"] == str(len(reply.body))


def test_errors_of_the_layers_have_it_too() -> None:
    closed = App(api_keys=("secret",))
    refused = closed("POST", ANTHROPIC, MESSAGE)
    assert (refused.status, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert closed("POST", ANTHROPIC, MESSAGE, x_api_key="secret", anthropic_version="2023-06-01").status == 200
    closed.app.state.frontend.drain.begin()
    late = closed("POST", ANTHROPIC, MESSAGE, x_api_key="secret")
    assert (late.status, late.json()["error"]["type"]) == (503, "overloaded_error")
    assert late.headers["retry-after"] == "5"


def test_a_full_queue_is_a_rate_limit(app: App) -> None:
    app.engine.refusal = ApiError("queue_full", "512 requests are waiting.")
    reply = app("POST", ANTHROPIC, MESSAGE)
    assert (reply.status, reply.json()["error"]["type"]) == (429, "rate_limit_error")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/", "/v1/messages/x"])
def test_the_shape_is_the_paths(path: str) -> None:
    error = ApiError("not_found", "No.")
    assert error.body_for(path) == error.anthropic_body
    assert error.body_for(path.replace("messages", "messagesx")) == error.body


def test_the_field_at_fault_is_named_in_the_message() -> None:
    assert b'"max_tokens: Too much."' in ApiError("invalid_request_error", "Too much.", "max_tokens").anthropic_body
    assert b'"At `$.top_p`."' in ApiError("invalid_request_error", "At `$.top_p`.", "top_p").anthropic_body


def test_every_status_has_one_of_anthropics_types() -> None:
    for code, (status, _) in TABLE.items():
        kind = json.loads(ApiError(code, "").anthropic_body)["error"]["type"]
        if status < 500:
            assert kind == ANTHROPIC_TYPES.get(status, "invalid_request_error")
        else:
            assert kind in {"api_error", "overloaded_error"}


@pytest.mark.parametrize(
    "path", [RESPONSES + "/resp_1", RESPONSES + "/resp_1/cancel", RESPONSES + "/resp_1/input_items"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_responses_are_not_kept(app: App, path: str, method: str) -> None:
    reply = app(method, path)
    assert reply.status == 404
    assert reply.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (RESPONSES, {}, "input"),
        (RESPONSES, {"input": "hi", "max_output_tokens": 10_000}, "max_output_tokens"),
        (RESPONSES, {"input": "hi " * 2_000}, "input"),
        (RESPONSES, {"input": "hi", "previous_response_id": "resp_1"}, "previous_response_id"),
        (ANTHROPIC, {**MESSAGE, "max_tokens": 10_000}, "max_tokens"),
        (ANTHROPIC, {"messages": [{"role": "user", "content": "hi " * 2_000}], "max_tokens": 5}, "messages"),
        (ANTHROPIC, {"messages": MESSAGES}, "max_tokens"),
    ],
)
def test_bad_requests_name_the_field_of_their_own_api(app: App, path: str, body: Any, param: str) -> None:
    reply = app("POST", path, body)
    assert reply.status == 400
    said = reply.json()["error"]
    assert said["param"] == param if path == RESPONSES else param in said["message"]
    assert not app.engine.submissions


@pytest.mark.parametrize(("path", "param"), [(RESPONSES, "text"), (ANTHROPIC, "output_config")])
def test_what_only_the_engine_refuses_is_named_the_same_way(app: App, path: str, param: str) -> None:
    app.engine.refusal = ApiError("invalid_request_error", "Invalid type: banana", "response_format")
    said = app("POST", path, {**RESPONSE, **MESSAGE}).json()["error"]
    assert said["message"].startswith(f"{param}: ") if path == ANTHROPIC else said["param"] == param


@pytest.mark.parametrize(
    "more", [{}, {"system": "Be brief."}, {"messages": [*MESSAGES, {"role": "assistant", "content": "I"}]}]
)
def test_the_count_is_the_length_of_the_prompt(app: App, more: dict[str, Any]) -> None:
    body = {**MESSAGE, **more}
    counted = app("POST", COUNT, body).json()
    app("POST", ANTHROPIC, body)
    assert counted == {"input_tokens": len(app.engine.submissions[0].prompts[0])}


def test_a_prompt_that_is_too_long_is_counted_all_the_same(app: App) -> None:
    long = {"messages": [{"role": "user", "content": "hi " * 300}]}
    assert app("POST", COUNT, long).json()["input_tokens"] > app.engine.card.max_model_len


def request(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (path.encode(), len(data), data)


def test_a_messages_silence_is_broken_as_in_every_stream(tmp_path: Path) -> None:
    endpoint, device = f"ipc://{tmp_path}/e.sock", MadeUpDevice()
    device.gate.clear()
    with (
        MadeUpEngine(endpoint, device=device, card=card(TOKENIZER)),
        LiveServer(API, engine=endpoint, keepalive_interval_s=0.05) as server,
        server.connect() as client,
    ):
        client.send(request(ANTHROPIC, {**MESSAGE, "stream": True}))
        client.until(b"\r\n\r\n")
        for _ in range(2):
            assert client.until(b"\n\r\n") == b"4\r\n:ka\n\r\n"
        device.gate.set()
        assert client.until(b"0\r\n\r\n").endswith(b'{"type":"message_stop"}\n\n\r\n0\r\n\r\n')


@pytest.mark.parametrize("path", [RESPONSES, ANTHROPIC])
def test_a_stream_is_cancelled_by_its_id(tmp_path: Path, path: str) -> None:
    endpoint = f"ipc://{tmp_path}/e.sock"
    endless = {**RESPONSE, **MESSAGE, "max_tokens": 200, "ignore_eos": True, "stream": True}
    with (
        MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.01), card=card(TOKENIZER)),
        LiveServer(API, engine=endpoint) as server,
        server.connect() as client,
    ):
        client.send(request(path, endless))
        head = client.until(b"delta").decode()
        rid = head.partition("x-stream-id: ")[2].partition("\r")[0]
        assert server.post(f"/v1/requests/{rid}/cancel", b"").status == 200
        last = client.until(b"0\r\n\r\n").decode()
        assert "event: error\n" in last
        assert "message_stop" not in last
        assert "response.completed" not in last
        assert server.post(f"/v1/requests/{rid}/cancel", b"").status == 404


@pytest.mark.parametrize("before", [b"", b"GET /v1/messages HTTP/1.1\r\nHost: x\r\n\r\n"])
@pytest.mark.parametrize(
    ("rest", "status"),
    [(b"A: " + b"x" * 40_000 + b"\r\n\r\n", 431), (b"no field\r\n\r\n", 400), (b"\n", 400)],
)
def test_what_the_parser_refuses_is_told_in_the_shape_of_the_path_asked_for(
    before: bytes, rest: bytes, status: int
) -> None:
    with LiveServer(API) as server:
        for path, shape in ((b"/v1/messages?beta=true", "type"), (b"/v1/messagesx", "error")):
            with server.connect() as client:
                if before:
                    client.send(before)
                    client.answer()
                client.send(b"POST %b HTTP/1.1\r\nHost: x\r\n%b" % (path, rest))
                answer = client.answer()
            assert answer.status == status
            assert next(iter(json.loads(answer.body))) == shape


def test_a_body_that_is_too_large_on_the_wire_is_told_in_anthropics_shape(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/e.sock"
    with LiveServer(API, engine=endpoint, max_body_size=1000) as server, server.connect() as client:
        client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"1\r\nx\r\n" * 500)
        answer = client.answer()
    assert answer.status == 413
    assert json.loads(answer.body)["error"]["type"] == "request_too_large"
