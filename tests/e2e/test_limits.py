"""Every limit of the API as a client meets it: what is just within it is served, what is beyond it is refused with its
status and the name of the field, and a stream beside all this is what it is alone.

What a connection may do between its requests, and what a grammar may cost, have tests of their own: test_server,
test_body and test_bounds in tests/api_server, and tests/engine_core/grammar/test_trouble.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api_server import bounds, early
from api_server import server as frontend
from api_server.config import Config
from api_server.schema import decode, fields
from deploy.options import OPTIONS
from engine_core.grammar import bounds as grammar_bounds
from protocol import sampling, validate
from tests.api_server.live import BareClient
from tests.e2e.server import Server, until

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"prompt": "Once upon a time", "max_tokens": 1200, "ignore_eos": True, "stream": True}
ONE_TOKEN = {"allowed_token_ids": [300], "stop_token_ids": [300]}  # whatever max_tokens is
MIB = 1 << 20


def test_the_numbers_are_those_that_are_promised() -> None:
    config = Config(engine="ipc:///x")
    assert (config.max_header_size, config.max_headers, config.header_timeout_s) == (32 << 10, 64, 10)
    assert (config.max_body_size, config.body_timeout_s) == (4 << 20, 30)
    assert (config.first_token_timeout_s, config.request_timeout_s, config.stall_timeout_s) == (120, 1800, 60)
    assert (frontend.KEEP_ALIVE_S, bounds.UNREAD_FACTOR) == (75, 4)
    assert (decode.MAX_DEPTH, fields.MAX_N, fields.MAX_STOPS, fields.MAX_STOP_CHARS) == (32, 8, 4, 256)
    assert (early.MAX_SEQUENCES, validate.MAX_TOTAL_TOKENS) == (512, 65_536)
    assert (sampling.MAX_TOP_LOGPROBS, sampling.MAX_LOGIT_BIAS, sampling.MAX_GRAMMAR_SIZE) == (20, 1024, 64 << 10)
    assert (grammar_bounds.COMPILE_S, grammar_bounds.COMPILE_BYTES) == (2, 512 << 20)
    assert {option.name: option.default for option in OPTIONS}["max-queued-requests"] == "512"


# ---------------------------------------------------------------------------------------------------- the witness


@pytest.fixture(scope="module", autouse=True)
def undisturbed(server: Server) -> Iterator[None]:
    """The same request over and over, beside all tests of this module: always the same tokens, by the same engine."""
    body = {"prompt": "Once upon a time", "max_tokens": 100, "temperature": 0, "ignore_eos": True, "stream": True}
    stop, seen, epoch = threading.Event(), [], server.engine()["epoch"]

    def repeat() -> None:
        while not stop.is_set():
            events = server.post(COMPLETIONS, body).events()
            seen.append("".join(event["choices"][0]["text"] for event in events))

    thread = threading.Thread(target=repeat)
    thread.start()
    yield
    stop.set()
    thread.join()
    assert seen
    assert len(set(seen)) == 1
    assert server.engine()["epoch"] == epoch


# ---------------------------------------------------------------------------------------------------- parameters


def nested(depth: int) -> Any:
    """An object that is so deep in a body."""
    value: Any = 1
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def described(size: int) -> dict[str, Any]:
    """A response_format whose schema has `size` bytes."""
    schema: dict[str, Any] = {"enum": ["x"], "description": ""}
    schema["description"] = "x" * (size - len(json.dumps(schema, separators=(",", ":"))))
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}


def limit(path: str, param: str | None, within: dict[str, Any], beyond: dict[str, Any], code: str = "") -> Any:
    base: dict[str, Any] = {"max_tokens": 1, **({"messages": HELLO} if path == CHAT else {"prompt": "Hello"})}
    code = code or "invalid_request_error"
    named = f"{path}-{'-'.join(beyond)}"
    return pytest.param(path, param, {**base, **within}, {**base, **beyond}, code, id=named)


LIMITS = [
    limit(CHAT, "n", {"n": 8}, {"n": 9}),
    limit(COMPLETIONS, "n", {"prompt": ["Hello"] * 64, "n": 8}, {"prompt": ["Hello"] * 65, "n": 8}),
    limit(COMPLETIONS, "prompt", {"prompt": [[5]] * 512}, {"prompt": [[5]] * 513}),
    limit(
        COMPLETIONS,
        "max_tokens",
        {"prompt": ["Hello"] * 64, "n": 8, "max_tokens": 128, **ONE_TOKEN},
        {"prompt": ["Hello"] * 64, "n": 8, "max_tokens": 129, **ONE_TOKEN},
    ),
    limit(
        CHAT,
        "top_logprobs",
        {"logprobs": True, "top_logprobs": 20},
        {"logprobs": True, "top_logprobs": 21},
    ),
    limit(COMPLETIONS, "logprobs", {"logprobs": 20}, {"logprobs": 21}),
    limit(COMPLETIONS, "prompt_logprobs", {"prompt_logprobs": 20}, {"prompt_logprobs": 21}),
    limit(CHAT, "stop", {"stop": ["a", "b", "c", "d"]}, {"stop": ["a", "b", "c", "d", "e"]}),
    limit(CHAT, "stop", {"stop": "x" * 256}, {"stop": ["x" * 257]}),
    limit(
        CHAT,
        "logit_bias",
        {"logit_bias": {str(token): 1 for token in range(1024)}},
        {"logit_bias": {str(token): 1 for token in range(1025)}},
    ),
    limit(CHAT, None, {"metadata": nested(32)}, {"metadata": nested(33)}, "invalid_json"),
    limit(CHAT, "response_format", {"max_tokens": 9, "response_format": described(64 << 10)},
          {"response_format": described((64 << 10) + 1)}),
    limit(COMPLETIONS, "structured_outputs", {"structured_outputs": {"regex": "ab?"}},
          {"structured_outputs": {"regex": "a" * ((64 << 10) + 1)}}),
    limit(COMPLETIONS, "structured_outputs", {"structured_outputs": {"grammar": 'start: "a"'}},
          {"structured_outputs": {"grammar": 'start: "a"' + " " * (64 << 10)}}),
    limit(COMPLETIONS, "structured_outputs", {"structured_outputs": {"choice": ["a", "b"]}},
          {"structured_outputs": {"choice": ["a" * (64 << 10)]}}),
    limit(COMPLETIONS, "guided_json", {"guided_json": {"const": "a"}}, {"guided_json": {"const": "a" * (64 << 10)}}),
    limit(
        COMPLETIONS,
        "max_tokens",
        {"prompt": [300] * 10, "max_tokens": 2038, **ONE_TOKEN},
        {"prompt": [300] * 10, "max_tokens": 2039},
        "context_length_exceeded",
    ),
    limit(
        COMPLETIONS,
        "prompt",
        {"prompt": [300] * 2047},
        {"prompt": [300] * 2048},
        "context_length_exceeded",
    ),
]  # fmt: skip


def error_of(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(("path", "param", "within", "beyond", "code"), LIMITS)
def test_within_a_limit_and_beyond(
    server: Server, path: str, param: str | None, within: dict[str, Any], beyond: dict[str, Any], code: str
) -> None:
    served = server.post(path, within)
    assert served.status == 200, served.text()
    for stream in (False, True):
        refused = server.post(path, {**beyond, "stream": stream})
        error = error_of(refused)
        assert (refused.status, error["type"], error["param"], error["code"]) == (
            400, "invalid_request_error", param, code
        )  # fmt: skip
        assert "Retry-After" not in refused.headers


# ---------------------------------------------------------------------------------------------------- connections


def raw(server: Server, data: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, error and headers of the answer to these bytes; the connection ends behind it."""
    with BareClient(server.port) as client:
        client.send(data)
        answer = client.answer()
        assert client.rest() == b""
        return answer.status, json.loads(answer.body)["error"], answer.headers


def test_headers(server: Server) -> None:
    few = {f"X-{number}": "x" for number in range(60)}  # and those that are always there
    assert server.get("/livez", {**few, "X-Long": "x" * 31_000}).status == 200
    count = b"".join(b"X-%d: x\r\n" % number for number in range(65))
    for fields_ in (count, b"X-Long: " + b"x" * (32 << 10) + b"\r\n"):
        status, error, headers = raw(server, b"GET /livez HTTP/1.1\r\n" + fields_ + b"\r\n")
        assert (status, error["code"], headers["connection"]) == (431, "headers_too_large", "close")


def test_bodies(server: Server) -> None:
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    body = json.dumps({"prompt": "Hello", "max_tokens": 1}).encode()
    full = server.request("POST", COMPLETIONS, body + b" " * (4 * MIB - len(body)))
    assert full.status == 200
    told = raw(server, f"{head}Content-Length: {4 * MIB + 1}\r\n\r\n".encode())
    # Chunks of one byte: a sixth of this is the body.
    framed = raw(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"1\r\n \r\n" * (4 * MIB // 6 + 9))
    for status, error, _ in (told, framed):
        assert (status, error["code"], error["type"]) == (413, "request_too_large", "invalid_request_error")


def test_an_old_client_gets_a_body_that_ends_with_the_connection(server: Server) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 3, "stream": True, "ignore_eos": True}).encode()
    with BareClient(server.port) as client:
        client.send(f"POST {COMPLETIONS} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = client.until(b"\r\n\r\n").lower()
        stream = client.rest()
    assert b"chunked" not in head
    assert stream.startswith(b"data: {")
    assert stream.endswith(b"data: [DONE]\n\n")


# ---------------------------------------------------------------------------------------------------- a tight server


@pytest.fixture(scope="module")
def tight() -> Iterator[Server]:
    """One request at a time, one that waits, a cache for some 1,300 tokens, and little patience."""
    with Server(
        "--max-num-seqs", "1", "--max-queued-requests", "1", "--kv-cache-memory", "2M", "--header-timeout", "1",
        "--body-timeout", "1", "--stall-timeout", "1", "--first-token-timeout", "2", "--max-body-size", "100K",
    ) as running:  # fmt: skip
        yield running


def busy(server: Server) -> Any:
    """A stream that runs, and goes on."""
    until(lambda: server.engine()["running"] == 0)
    stream = server.post(COMPLETIONS, ENDLESS)
    next(stream.data())
    return stream


def test_the_cache(tight: Server) -> None:
    assert tight.post(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1200, **ONE_TOKEN}).status == 200
    refused = tight.post(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1600})
    error = error_of(refused)
    assert (refused.status, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")


def test_the_queue(tight: Server) -> None:
    stream = busy(tight)
    waiting = threading.Thread(target=lambda: tight.post(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1}))
    waiting.start()
    until(lambda: tight.engine()["waiting"] == 1)
    for streams in (False, True):
        refused = tight.post(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1, "stream": streams})
        error = error_of(refused)
        assert (refused.status, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert refused.headers["Retry-After"] == "1"
    stream.close()
    waiting.join()


@pytest.mark.parametrize("streams", [False, True])
def test_the_time_to_the_first_token(tight: Server, streams: bool) -> None:
    stream = busy(tight)
    late = tight.post(COMPLETIONS, {"prompt": "Hello", "max_tokens": 1, "stream": streams})
    if streams:  # it was accepted, so it has its status
        assert late.status == 200
        error = json.loads(list(late.data())[-1])["error"]
    else:
        assert late.status == 408
        error = error_of(late)
    assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
    stream.close()


def test_the_time_of_a_whole_answer(tight: Server) -> None:
    late = tight.post(COMPLETIONS, {**ENDLESS, "timeout": 0.3})
    *_, last = late.data()
    assert json.loads(last)["error"]["code"] == "request_timeout"
    whole = tight.post(COMPLETIONS, {**ENDLESS, "timeout": 0.3, "stream": False})
    assert (whole.status, error_of(whole)["code"]) == (408, "request_timeout")


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /livez HTT", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"],
    ids=["silent", "headers", "body"],
)
def test_what_does_not_come(tight: Server, begun: bytes) -> None:
    status, error, headers = raw(tight, begun)
    assert (status, error["code"], headers["connection"]) == (408, "request_timeout", "close")


def test_a_reader_that_takes_nothing(tight: Server) -> None:
    until(lambda: tight.engine()["running"] == 0)
    body = json.dumps({**ENDLESS, "logprobs": 20}).encode()
    with BareClient(tight.port, receive_buffer=4096) as client:
        client.send(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        client.until(b"\r\n\r\n")
        until(lambda: tight.engine()["running"] == 1)
        until(lambda: tight.engine()["running"] == 0)
        assert b"[DONE]" not in client.rest()


def test_a_smaller_body(tight: Server) -> None:
    refused = tight.request("POST", COMPLETIONS, b" " * (100 * 1024 + 1))
    assert (refused.status, error_of(refused)["code"]) == (413, "request_too_large")
