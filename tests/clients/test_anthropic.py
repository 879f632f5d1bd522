"""Anthropic's client on /v1/messages: whole and streamed, tools, tokens counted, errors."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.clients.service import KEY, MODEL, QUESTION, WEATHER, Service, is_weather

anthropic = pytest.importorskip("anthropic")
from pydantic import BaseModel  # noqa: E402 (comes with anthropic)

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
GREEDY: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "extra_body": {"temperature": 0}}  # no longer its own
TOOL = {"name": "get_weather", "description": "The weather of the next days.", "input_schema": WEATHER}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=service.url, api_key=KEY, max_retries=0) as found:
        yield found


def test_a_message_is_the_same_streamed_and_whole(client: Any) -> None:
    whole = client.messages.create(messages=QUESTION, **GREEDY)
    assert (whole.role, whole.stop_reason, whole.content[0].type) == ("assistant", "end_turn", "text")
    with client.messages.stream(messages=QUESTION, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    assert final.usage.input_tokens == whole.usage.input_tokens > 0


def test_raw_events_come_in_their_order(client: Any) -> None:
    events = [event.type for event in client.messages.create(messages=QUESTION, stream=True, **GREEDY)]
    first, *middle, last = [event for event in events if event != "ping"]
    assert (first, last) == ("message_start", "message_stop")
    assert middle[0] == "content_block_start"
    assert middle[-2:] == ["content_block_stop", "message_delta"]
    assert set(middle[1:-2]) == {"content_block_delta"}


def test_a_system_prompt_and_blocks(client: Any) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    plain = client.messages.create(messages=blocks, system="Be brief.", **GREEDY)
    parts = client.messages.create(messages=blocks, system=[{"type": "text", "text": "Be brief."}], **GREEDY)
    assert plain.content == parts.content


def test_stop_sequences_and_limits(client: Any) -> None:
    stopped = client.messages.create(messages=QUESTION, stop_sequences=["cache"], **GREEDY)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "cache")
    assert "cache" not in stopped.content[0].text
    cut = client.messages.create(messages=QUESTION, **(GREEDY | {"max_tokens": 2}))
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


def test_tokens_are_counted(client: Any) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens == client.messages.create(messages=QUESTION, **GREEDY).usage.input_tokens


def test_parse(client: Any) -> None:
    parsed = client.messages.parse(messages=QUESTION, output_format=Verdict, **GREEDY)
    assert isinstance(parsed.parsed_output, Verdict)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_tools_that_are_forced(client: Any, choice: dict[str, Any]) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    options = {"messages": QUESTION, "tools": [TOOL], "tool_choice": choice, **GREEDY}
    whole = client.messages.create(**options)
    assert whole.stop_reason == "tool_use"
    for block in whole.content:
        assert (block.type, block.name) == ("tool_use", "get_weather")
        assert is_weather(block.input)
    with client.messages.stream(**options) as stream:
        final = stream.get_final_message()
    assert [block.input for block in final.content] == [block.input for block in whole.content]
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "No such city.", "is_error": True}
        for block in whole.content
    ]
    turns = [*QUESTION, whole.to_param(), {"role": "user", "content": results}]
    assert client.messages.create(messages=turns, tools=[TOOL], **(GREEDY | {"max_tokens": 4})).role == "assistant"


def test_errors_are_what_they_are(client: Any, service: Service) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(messages=QUESTION, **(GREEDY | {"extra_body": {"temperature": 9}}))
    assert bad.value.body["type"] == "error"
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(messages=QUESTION, **(GREEDY | {"model": "claude-17"}))
    assert missing.value.body["error"]["type"] == "not_found_error"
    with (
        anthropic.Anthropic(base_url=service.url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as unknown,
    ):
        stranger.messages.create(messages=QUESTION, **GREEDY)
    assert unknown.value.body["error"]["type"] == "authentication_error"


def test_a_failure_in_a_stream_raises(client: Any, service: Service) -> None:
    endless = {"model": MODEL, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    stream = client.messages.create(messages=QUESTION, stream=True, **endless)
    start = next(stream)
    path = f"/v1/requests/{start.message.id}/cancel"
    assert service.post(path, {}, {"x-api-key": KEY}).status == 200
    with pytest.raises(anthropic.APIStatusError, match="cancel"):
        list(stream)


def test_a_bearer_token_will_do(service: Service) -> None:
    with anthropic.Anthropic(base_url=service.url, auth_token=KEY, api_key=None, max_retries=0) as client:
        assert client.messages.create(messages=QUESTION, **(GREEDY | {"max_tokens": 1})).usage.output_tokens == 1


def test_leaving_a_stream_gives_everything_back(client: Any, service: Service) -> None:
    endless = {"model": MODEL, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    with client.messages.stream(messages=QUESTION, **endless) as stream:
        for event in stream:
            if event.type == "text":
                break
        assert service.engine()["running"] == 1
    service.wait_idle()
