"""Concurrent requests do not show in each other's tokens, and leaving early gives everything back."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.server import Server, until

COMPLETIONS = "/v1/completions"
PUBLISHED_S = 1.2  # more than twice the time between two of the engine's figures


def prompts(count: int) -> list[str]:
    animals = ("fox", "bear", "robot", "dragon", "cat", "owl", "whale", "mouse")
    return [f"Once upon a time there was a {animals[i % 8]} who had {i} friends and" for i in range(count)]


def complete(server: Server, **body: Any) -> list[int]:
    answer = server.post(COMPLETIONS, {"max_tokens": 40, "ignore_eos": True, "return_token_ids": True, **body})
    assert answer.status == 200
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


def test_seeded_requests_are_the_same_alone_and_among_sixty_four(server: Server) -> None:
    seeded: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 12345}
    options: list[dict[str, Any]] = [{"temperature": 1.0, "seed": i} for i in range(64)]
    with Server("--dtype", "float32", "--no-enable-prefix-caching") as exact:
        alone = complete(exact, prompt="Once upon a time", **seeded)
        with ThreadPoolExecutor(65) as pool:
            mates = [pool.submit(complete, exact, prompt=p, **o) for p, o in zip(prompts(64), options, strict=True)]
            among = pool.submit(complete, exact, prompt="Once upon a time", **seeded).result()
            assert all(len(mate.result()) == 40 for mate in mates)
    assert among == alone


def test_closing_a_client_frees_its_blocks(server: Server) -> None:
    until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    aborted = server.metric("vllm:request_success_total", finished_reason="abort")
    for stream in (True, False):
        body = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
        if stream:
            answer = server.post(COMPLETIONS, body)
            next(answer.data())
            answer.close()
        else:
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                content = json.dumps(body).encode()
                head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                connection.sendall(head + content)
                until(lambda: server.engine()["running"] == 1)
        until(lambda: server.engine()["running"] == 0)
    until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    until(lambda: server.metric("vllm:request_success_total", finished_reason="abort") == aborted + 2)


def test_equal_request_ids_of_clients_mean_nothing(server: Server) -> None:
    with ThreadPoolExecutor(16) as pool:
        headers = {"X-Request-Id": "the-same"}
        answers = list(
            pool.map(lambda i: server.post(COMPLETIONS, {"prompt": f"{i}", "max_tokens": 3}, headers), range(16))
        )
    assert {answer.headers["X-Request-Id"] for answer in answers} == {"the-same"}
    assert len({answer.json()["id"] for answer in answers}) == 16


def settled(read: Callable[[], float]) -> float:
    """A figure that has not moved for longer than the engine takes to publish one: what came before is in it."""
    value, since_s = read(), time.monotonic()

    def still() -> bool:
        nonlocal value, since_s
        if (now := read()) != value:
            value, since_s = now, time.monotonic()
        return time.monotonic() - since_s > PUBLISHED_S

    until(still)
    return value


def test_a_request_with_several_prompts_is_refused_whole(server: Server) -> None:
    before = settled(lambda: server.metric("vllm:prompt_tokens_total"))
    answer = server.post(COMPLETIONS, {"prompt": ["fine", "x " * 4000], "max_tokens": 4})
    assert answer.status == 400
    assert server.metric("vllm:prompt_tokens_total") == before
