"""Whatever a client sends: a 4xx with OpenAI's error body, the same epoch afterwards, and no other stream notices."""

import json
import socket
from typing import Any

import pytest

from tests.e2e.server import Server

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
HUGE = 2**63


def bad(path: str, param: str | None, status: int = 400, **body: Any) -> Any:
    given = ",".join(f"{key}={str(value)[:30]}" for key, value in body.items())
    return pytest.param(path, param, status, body, id=f"{path}-{given}")


BAD = [
    bad(CHAT, "messages"),
    bad(CHAT, "messages", messages=[]),
    bad(CHAT, "messages", messages="hello"),
    bad(CHAT, None, messages=[{"role": "user"}]),
    bad(CHAT, None, messages=[{"role": "wizard", "content": "x"}]),
    bad(CHAT, None, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
    bad(CHAT, "temperature", messages=HELLO, temperature=2.5),
    bad(CHAT, "temperature", messages=HELLO, temperature=-1),
    bad(CHAT, "temperature", messages=HELLO, temperature="warm"),
    bad(CHAT, "temperature", messages=HELLO, temperature=True),
    bad(CHAT, "top_p", messages=HELLO, top_p=0),
    bad(CHAT, "top_p", messages=HELLO, top_p=1.5),
    bad(CHAT, "min_p", messages=HELLO, min_p=-0.1),
    bad(CHAT, "top_k", messages=HELLO, top_k=-2),
    bad(CHAT, "n", messages=HELLO, n=0),
    bad(CHAT, "n", messages=HELLO, n=9),
    bad(CHAT, "n", messages=HELLO, n=10**9),
    bad(CHAT, "seed", messages=HELLO, seed=HUGE),
    bad(CHAT, "seed", messages=HELLO, seed=1.5),
    bad(CHAT, "presence_penalty", messages=HELLO, presence_penalty=3),
    bad(CHAT, "frequency_penalty", messages=HELLO, frequency_penalty=-3),
    bad(CHAT, "repetition_penalty", messages=HELLO, repetition_penalty=0),
    bad(CHAT, "stop", messages=HELLO, stop=["a"] * 5),
    bad(CHAT, "stop", messages=HELLO, stop=["a" * 257]),
    bad(CHAT, "stop", messages=HELLO, stop=[""]),
    bad(CHAT, "max_tokens", messages=HELLO, max_tokens=0),
    bad(CHAT, "max_tokens", messages=HELLO, max_tokens=-5),
    bad(CHAT, "max_tokens", messages=HELLO, max_tokens=100_000),
    bad(CHAT, "max_completion_tokens", messages=HELLO, max_completion_tokens=0),
    bad(CHAT, "min_tokens", messages=HELLO, min_tokens=9, max_tokens=8),
    bad(CHAT, "logit_bias", messages=HELLO, logit_bias={"5000000": 1}),
    bad(CHAT, "logit_bias", messages=HELLO, logit_bias={"5": 101}),
    bad(CHAT, "logit_bias", messages=HELLO, logit_bias={"five": 1}),
    bad(CHAT, "stop_token_ids", messages=HELLO, stop_token_ids=[5_000_000]),
    bad(CHAT, "stop_token_ids", messages=HELLO, stop_token_ids=[-1]),
    bad(CHAT, "allowed_token_ids", messages=HELLO, allowed_token_ids=[]),
    bad(CHAT, "allowed_token_ids", messages=HELLO, allowed_token_ids=[5_000_000]),
    bad(CHAT, "top_logprobs", messages=HELLO, logprobs=True, top_logprobs=21),
    bad(CHAT, "stream", messages=HELLO, stream="yes"),
    bad(CHAT, "stream_options", messages=HELLO, stream=False, stream_options={"include_usage": True}),
    bad(CHAT, "chat_template", messages=HELLO, chat_template="{{ 1 }}"),
    bad(CHAT, "chat_template_kwargs", messages=HELLO, chat_template_kwargs={"a": {"b": 1}}),
    bad(CHAT, "model", 404, messages=HELLO, model="gpt-17"),
    bad(CHAT, "messages", messages=[{"role": "user", "content": "word " * 5000}]),
    bad(COMPLETIONS, "prompt"),
    bad(COMPLETIONS, "prompt", prompt=[]),
    bad(COMPLETIONS, "prompt", prompt=[[]]),
    bad(COMPLETIONS, "prompt", prompt=[1, "a"]),
    bad(COMPLETIONS, "prompt", prompt=[-1]),
    bad(COMPLETIONS, "prompt", prompt=[5_000_000]),
    bad(COMPLETIONS, "prompt", prompt=[HUGE]),
    bad(COMPLETIONS, "prompt", prompt={"text": "x"}),
    bad(COMPLETIONS, "prompt", prompt=[1] * 3000),
    bad(COMPLETIONS, "max_tokens", prompt="x", max_tokens=2048),
    bad(COMPLETIONS, None, prompt=["x"] * 200, n=8),
    bad("/generate", "prompt"),
    bad("/generate", "max_tokens", prompt="x", max_tokens=0),
    bad("/v1/completions/stream", "prompt", max_tokens=5),
    bad("/tokenize", None),
    bad("/detokenize", "tokens", tokens=[-1]),
    bad("/detokenize", "tokens", tokens=[5_000_000]),
]


def error_of(answer: Any) -> dict[str, Any]:
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(("path", "param", "status", "body"), BAD)
def test_bad_parameters_are_named(
    server: Server, path: str, param: str | None, status: int, body: dict[str, Any]
) -> None:
    for stream in (False, True):
        answer = server.post(path, {"stream": stream, **body})
        error = error_of(answer)
        assert answer.status == status, error
        assert answer.headers["Content-Type"] == "application/json"
        if param is not None:
            assert error["param"] == param, error


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"prompt": "\xff\xfe"}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b"[" * 100 + b"]" * 100, "invalid_json"),
        (b'{"prompt": "x", "temperature": NaN}', None),
        (b'{"prompt": "x", "temperature": 1e400}', None),
        (b"null", None),
        (b"[]", None),
        (b'"prompt"', None),
        (b'{"prompt": "x"} trailing', "invalid_json"),
        (b'{"prompt": "x", "user": ' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}", "invalid_json"),
    ],
)
def test_bodies_that_are_not_requests(server: Server, body: bytes, code: str | None) -> None:
    answer = server.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
    assert answer.status == 400
    error = error_of(answer)
    assert code is None or error["code"] == code


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", COMPLETIONS, {"Content-Type": "text/csv"}, 415),
        ("POST", COMPLETIONS, {"Content-Encoding": "gzip"}, 415),
        ("GET", COMPLETIONS, {}, 405),
        ("DELETE", CHAT, {}, 405),
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/v1/models/none/of/these", {}, 404),
        ("GET", "/../etc/passwd", {}, 404),
    ],
)
def test_wrong_paths_methods_and_types(
    server: Server, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = server.request(method, path, b"{}" if method == "POST" else None, headers)
    assert answer.status == status
    error_of(answer)


def test_a_body_too_large(server: Server) -> None:
    answer = server.request("POST", COMPLETIONS, b" " * (4 * 2**20 + 1))
    assert answer.status == 413
    error_of(answer)


def test_raw_garbage_gets_a_4xx_or_a_closed_connection(server: Server) -> None:
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(garbage)
            reply = connection.recv(4096)
            assert not reply or reply.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200", b"HTTP/1.1 404")), reply


def test_a_stream_beside_all_this_does_not_notice(server: Server) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
    undisturbed = server.post(COMPLETIONS, body).json()["choices"][0]["text"]
    before = server.engine()["epoch"]
    stream = server.post(COMPLETIONS, {**body, "stream": True})
    lines = stream.data()
    text = json.loads(next(lines))["choices"][0]["text"]
    for case in BAD:
        path, _, _, wrong = case.values
        server.post(path, wrong).close()
    for line in lines:
        if line != "[DONE]":
            text += json.loads(line)["choices"][0]["text"]
    assert text == undisturbed
    assert server.engine()["epoch"] == before
