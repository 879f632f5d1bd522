"""/v1/messages with Anthropic's own client, where it is installed."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.e2e.server import Server

anthropic = pytest.importorskip("anthropic")

MODEL = "tokenwire-tiny"
QUESTION: list[Any] = [{"role": "user", "content": "What is continuous batching?"}]
SETTLED: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "extra_body": {"temperature": 0}}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as made:
        yield made


def test_a_message_and_its_stream(client: Any) -> None:
    whole = client.messages.create(messages=QUESTION, **SETTLED)
    assert whole.stop_reason == "end_turn"
    type(whole).model_validate(whole.model_dump())
    with client.messages.stream(messages=QUESTION, **SETTLED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert [block.model_dump(exclude={"parsed_output"}) for block in final.content] == [
        block.model_dump() for block in whole.content
    ]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert [event.type for event in client.messages.create(messages=QUESTION, stream=True, **SETTLED)][-1] == (
        "message_stop"
    )


def test_the_count(client: Any) -> None:
    count = client.messages.count_tokens(messages=QUESTION, model=MODEL, system="Be brief.", tools=[WEATHER])
    usage = client.messages.create(messages=QUESTION, system="Be brief.", tools=[WEATHER], **SETTLED).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_a_call_and_its_result(client: Any) -> None:
    asked = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, **SETTLED}
    whole = client.messages.create(messages=QUESTION, **asked)
    assert whole.stop_reason == "tool_use"
    use = whole.content[-1]
    assert (use.type, use.name, set(use.input)) == ("tool_use", "get_weather", {"city"})
    with client.messages.stream(messages=QUESTION, **asked) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(parts)) == final.content[-1].input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "No such city.", "is_error": True}
    turns = [*QUESTION, whole.to_param(), {"role": "user", "content": [result]}]
    assert client.messages.create(messages=turns, tools=[WEATHER], **SETTLED).content


def test_parsing_by_a_schema(client: Any) -> None:
    parsed = client.messages.parse(messages=QUESTION, output_format=Verdict, **SETTLED)
    assert isinstance(parsed.parsed_output, Verdict)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"model": "other"}, "NotFoundError"),
        ({"max_tokens": 0}, "BadRequestError"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "BadRequestError"),
    ],
)
def test_errors_are_the_clients_own(client: Any, body: dict[str, Any], error: str) -> None:
    with pytest.raises(getattr(anthropic, error)) as caught:
        client.messages.create(**{"messages": QUESTION, **SETTLED, **body})
    assert caught.value.body["type"] == "error"


def test_a_failure_in_a_stream_raises(server: Server, client: Any) -> None:
    more = {"extra_body": {"ignore_eos": True}, "max_tokens": 400}
    stream = client.messages.create(messages=QUESTION, stream=True, **{**SETTLED, **more})
    start = next(stream)
    assert server.post(f"/v1/requests/{start.message.id}/cancel", {}).status == 200
    with pytest.raises(anthropic.APIStatusError, match="cancel"):
        list(stream)
