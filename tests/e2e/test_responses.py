"""/v1/responses with OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import (
    FunctionToolParam,
    Response,
    ResponseFunctionToolCall,
    ResponseInputItemParam,
    ResponseStreamEvent,
)
from pydantic import BaseModel, TypeAdapter

from tests.e2e.server import Server

MODEL = "tokenwire-tiny"
QUESTION = "What is continuous batching?"
SETTLED: dict[str, Any] = {"model": MODEL, "temperature": 0}
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "strict": True,
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Verdict(BaseModel):
    answer: Literal["yes", "no"]
    certain: bool


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(input=QUESTION, instructions="Be brief.", metadata={"a": "b"}, **SETTLED)
    Response.model_validate(response.model_dump(by_alias=True))
    assert response.status == "completed"
    assert response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.instructions == "Be brief."
    assert response.metadata == {"a": "b"}
    chat = client.chat.completions.create(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}], **SETTLED
    )
    assert response.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_the_stream_helper_and_the_raw_stream_give_the_whole(client: openai.OpenAI) -> None:
    whole = client.responses.create(input=QUESTION, **SETTLED)
    with client.responses.stream(input=QUESTION, **SETTLED) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == whole.output_text
    assert len(snapshots) > 5
    events = list(client.responses.create(input=QUESTION, stream=True, **SETTLED))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event.model_dump(by_alias=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text


def test_a_conversation_is_sent_whole(client: openai.OpenAI) -> None:
    first = client.responses.create(input=QUESTION, **SETTLED)
    history: list[Any] = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "Thanks!"}]
    second = client.responses.create(input=history, **SETTLED)
    assert second.output_text
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens // 16 * 16


def test_the_limit_makes_it_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(input=QUESTION, max_output_tokens=3, **SETTLED)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 3
    *_, last = client.responses.create(input=QUESTION, max_output_tokens=3, stream=True, **SETTLED)
    assert last.type == "response.incomplete"
    assert last.response.output_text == response.output_text


def test_log_probabilities(client: openai.OpenAI) -> None:
    response = client.responses.create(
        input=QUESTION, max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=2, **SETTLED
    )
    item = response.output[0]
    assert item.type == "message"
    text = item.content[0]
    assert text.type == "output_text"
    assert text.logprobs is not None
    assert "".join(one.token for one in text.logprobs) == text.text
    assert all(len(one.top_logprobs) == 2 for one in text.logprobs)


def test_parsing_by_a_schema(client: openai.OpenAI) -> None:
    response = client.responses.parse(input="Is water wet?", text_format=Verdict, **SETTLED)
    assert isinstance(response.output_parsed, Verdict)
    with client.responses.stream(input="Is water wet?", text_format=Verdict, **SETTLED) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed
    plain = client.responses.create(
        input="Is water wet?", text={"format": {"type": "json_object"}}, max_output_tokens=200, **SETTLED
    )
    if plain.status == "completed":
        assert isinstance(json.loads(plain.output_text), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_and_its_result(client: openai.OpenAI, choice: Any) -> None:
    asked = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, **SETTLED}
    response = client.responses.create(input="How is the weather in Paris?", **asked)
    assert response.status == "completed"
    call = response.output[-1]
    assert isinstance(call, ResponseFunctionToolCall)
    arguments = json.loads(call.arguments)
    assert (call.name, set(arguments)) == ("get_weather", {"city", "unit"})
    with client.responses.stream(input="How is the weather in Paris?", **asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    streamed = final.output[-1]
    assert streamed.type == "function_call"
    assert (streamed.name, streamed.arguments) == (call.name, call.arguments)
    assert "".join(deltas) == call.arguments
    assert streamed.parsed_arguments == arguments
    history: list[ResponseInputItemParam] = [
        {"role": "user", "content": "How is the weather in Paris?"},
        call.to_dict(),  # type: ignore[list-item]
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
    ]
    answer = client.responses.create(input=history, tools=[WEATHER], tool_choice="none", **SETTLED)
    assert answer.output[0].type == "message"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"temperature": 9}, "temperature"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": []}, "input"),
    ],
)
def test_refusals_name_the_field(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": MODEL, "input": "hi", **body})
    assert caught.value.param == param


def test_nothing_is_stored(client: openai.OpenAI) -> None:
    response = client.responses.create(input="hi", store=True, max_output_tokens=2, model=MODEL)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_cancelled_stream_raises(server: Server, client: openai.OpenAI) -> None:
    endless = {"ignore_eos": True, "min_tokens": 300}
    stream = client.responses.create(
        input=QUESTION, stream=True, max_output_tokens=400, model=MODEL, extra_body=endless
    )
    begun = next(stream)
    assert begun.type == "response.created"
    assert server.post(f"/v1/requests/{begun.response.id}/cancel", {}).status == 200
    seen = [begun]
    with pytest.raises(openai.APIError, match="cancel") as caught:
        seen.extend(stream)
    assert caught.value.code == "request_cancelled"
    assert seen[-1].type == "response.failed"
