"""Streams as their clients see them: curl, plain HTTP, and OpenAI's own client."""

import json
import shutil
import subprocess
from typing import Any

import openai
import pytest

from tests.e2e.server import Server, until

QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
STORY = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_a_chat_stream_event_by_event(server: Server) -> None:
    answer = server.post("/v1/chat/completions", {"messages": QUESTION, "stream": True, "temperature": 0})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    events = answer.events()
    assert {event["id"] for event in events} == {answer.headers["X-Stream-Id"]}
    assert len({(event["created"], event["model"], event["object"]) for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in event["choices"][0]["delta"] for event in events[1:])
    assert all("usage" not in event for event in events)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    whole = server.post("/v1/chat/completions", {"messages": QUESTION, "temperature": 0}).json()
    assert (
        "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        == whole["choices"][0]["message"]["content"]
    )


def test_usage_comes_last_and_is_null_before(server: Server) -> None:
    body = {"messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
    *events, last = server.post("/v1/chat/completions", body).events()
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 5


def test_cached_prompt_tokens_are_told(server: Server) -> None:
    body = {"prompt": "A prompt that is long enough to fill some blocks of the cache. " * 4, "max_tokens": 1}
    server.post("/v1/completions", body).json()
    usage = server.post("/v1/completions", body).json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached % 16 == 0
    assert usage["prompt_tokens"] - 16 <= cached < usage["prompt_tokens"]


def test_completion_chunks_are_the_whole(server: Server) -> None:
    events = server.post("/v1/completions", {**STORY, "stream": True}).events()
    whole = server.post("/v1/completions", STORY).json()
    assert {event["object"] for event in events} == {"text_completion"}
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 40


def test_generate_sends_one_event_per_token(server: Server) -> None:
    events = server.post("/generate", {**STORY, "stream": True}).events()
    assert len(events) == 40
    assert set(events[0]) == {"token", "token_id", "prefill_time_ms"}
    assert all(set(event) == {"token", "token_id", "step_ms"} for event in events[1:])
    whole = server.post("/generate", STORY).json()
    assert whole["text"] == "".join(event["token"] for event in events)
    assert whole["token_ids"] == [event["token_id"] for event in events]
    assert whole["finish_reason"] == "length"
    assert whole["total_time_ms"] >= whole["prefill_time_ms"] > 0


def test_the_simple_stream(server: Server) -> None:
    events = server.post("/v1/completions/stream", STORY).events()
    assert all(set(event) == {"token"} for event in events)
    text = server.post("/v1/completions", STORY).json()["choices"][0]["text"]
    assert "".join(event["token"] for event in events) == text


def test_the_event_source_route_numbers_its_events(server: Server) -> None:
    answer = server.get(
        "/v1/completions/stream?prompt=Once%20upon%20a%20time&max_tokens=5&temperature=0&ignore_eos=true"
    )
    stream = answer.headers["X-Stream-Id"]
    lines = list(answer.lines())
    assert lines[:2] == [f"id: {stream}.0", ""]
    ids = [line.removeprefix(f"id: {stream}.") for line in lines if line.startswith("id: ")]
    assert ids == sorted(set(ids))  # tokens that come together may share an event
    assert (ids[0], ids[-1]) == ("0", "5")
    assert lines[-2:] == ["data: [DONE]", ""]


def test_an_event_source_that_reconnects_never_generates_twice() -> None:
    with Server() as fresh:
        first = fresh.get("/v1/completions/stream?prompt=Hello&max_tokens=3&ignore_eos=true")
        list(first.lines())
        for last in (f"{first.headers['X-Stream-Id']}.3", "cmpl-00000000000000000000000000000000.1", "nonsense"):
            again = fresh.get("/v1/completions/stream?prompt=Hello&max_tokens=3", {"Last-Event-ID": last})
            assert again.status == 204
        fresh.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "ignore_eos": True})
        until(lambda: fresh.metric("vllm:generation_tokens_total") >= 3 + 2)
        assert fresh.metric("vllm:generation_tokens_total") == 3 + 2


def test_stop_strings_cut_the_same_in_streams_and_wholes(server: Server) -> None:
    full = server.post("/v1/completions", STORY).json()["choices"][0]["text"]
    stop = full[20:27]
    for include in (False, True):
        body = {**STORY, "stop": [stop, "never to be seen"], "include_stop_str_in_output": include}
        expected = full[: full.index(stop) + (len(stop) if include else 0)]
        whole = server.post("/v1/completions", body).json()["choices"][0]
        assert (whole["text"], whole["finish_reason"], whole["stop_reason"]) == (expected, "stop", stop)
        events = server.post("/v1/completions", {**body, "stream": True}).events()
        assert "".join(event["choices"][0]["text"] for event in events) == expected
        assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_choices_and_prompts_keep_their_places(server: Server) -> None:
    body = {
        "prompt": ["Once upon a time", "Hello"],
        "n": 3,
        "seed": 4,
        "max_tokens": 8,
        "temperature": 1,
        "stream": True,
    }
    events = server.post("/v1/completions", body).events()
    texts = [""] * 6
    for event in events:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    whole = server.post("/v1/completions", {**body, "stream": False}).json()
    assert [choice["text"] for choice in whole["choices"]] == texts
    assert [choice["index"] for choice in whole["choices"]] == list(range(6))
    assert len(set(texts)) > 2


def test_token_ids_are_returned_when_asked_for(server: Server) -> None:
    body = {**STORY, "return_token_ids": True}
    whole = server.post("/v1/completions", body).json()["choices"][0]
    ids = server.post("/tokenize", {"prompt": STORY["prompt"]}).json()["tokens"]
    assert whole["prompt_token_ids"] == ids
    assert len(whole["token_ids"]) == 40
    events = server.post("/v1/completions", {**body, "stream": True}).events()
    assert [token for event in events for token in event["choices"][0]["token_ids"]] == whole["token_ids"]


def test_text_comes_back_from_its_tokens(server: Server) -> None:
    text = "Grüße, 世界! 👩‍👩‍👧 naïve\n\ttabs"
    tokens = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert server.post("/detokenize", {"tokens": tokens["tokens"]}).json()["prompt"] == text


def test_multi_byte_text_is_never_cut(server: Server) -> None:
    """The bytes of an emoji come as several tokens: no event may hold a part of it."""
    body = {"messages": [{"role": "user", "content": "Show me some emoji"}], "temperature": 0, "stream": True}
    text = "".join(
        e["choices"][0]["delta"].get("content", "") for e in server.post("/v1/chat/completions", body).events()
    )
    assert any(ord(character) > 0xFFFF for character in text)
    assert "\N{REPLACEMENT CHARACTER}" not in text


def test_curl_streams(server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for path, body in (
        ("/v1/chat/completions", {"messages": QUESTION, "stream": True}),
        ("/v1/completions", {**STORY, "stream": True}),
        ("/generate", {**STORY, "stream": True}),
    ):
        command = ["curl", "-sN", f"{server.url}{path}", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        events = out.strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        assert all(json.loads(event.removeprefix("data: ")) for event in events[:-1])


def test_openai_client_chats(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tokenwire-tiny", "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_client_completes_and_lists(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tokenwire-tiny",
        "prompt": "Once upon a time",
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.completions.create(**options)
    text = "".join(
        chunk.choices[0].text for chunk in client.completions.create(**options, stream=True) if chunk.choices
    )
    assert text == whole.choices[0].text
    assert [model.id for model in client.models.list()] == ["tokenwire-tiny"]
    assert client.models.retrieve("tokenwire-tiny").id == "tokenwire-tiny"


def test_openai_client_sees_errors_as_what_they_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tokenwire-tiny", messages=QUESTION, temperature=9)  # type: ignore[arg-type]
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=QUESTION)  # type: ignore[arg-type]
