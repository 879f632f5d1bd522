"""openai-python on /v1/responses: whole, streamed with all its events, tools, parse."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.clients.service import KEY, MODEL, QUESTION, WEATHER, Service, is_weather

openai = pytest.importorskip("openai")
from pydantic import BaseModel  # noqa: E402 (comes with openai)

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}
INPUT = QUESTION[0]["content"]
TOOL = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}


class Forecast(BaseModel):
    city: Literal["Paris", "Tokyo", "Lima"]
    sunny: bool


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Any]:
    with openai.OpenAI(base_url=service.openai_url, api_key=KEY, max_retries=0) as found:
        yield found


def test_a_response_is_the_same_streamed_and_whole(client: Any) -> None:
    whole = client.responses.create(input=INPUT, **GREEDY)
    assert (whole.object, whole.status) == ("response", "completed")
    chat = client.chat.completions.create(messages=QUESTION, **GREEDY)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage.total_tokens == chat.usage.total_tokens
    with client.responses.stream(input=INPUT, **GREEDY) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == final.output_text == whole.output_text
    assert final.usage == whole.usage


def test_events_come_in_their_order(client: Any) -> None:
    events = list(client.responses.create(input=INPUT, stream=True, **GREEDY))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def test_turns_and_instructions(client: Any) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": "A cache."}, {"role": "user", "content": "Hello"}]
    answer = client.responses.create(input=turns, instructions="Be brief.", max_output_tokens=16, **GREEDY)
    assert answer.output_text


def test_what_is_cut_is_incomplete(client: Any) -> None:
    whole = client.responses.create(input="Tell me a story.", max_output_tokens=16, **GREEDY)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 16
    last = list(client.responses.create(input="Tell me a story.", max_output_tokens=16, stream=True, **GREEDY))[-1]
    assert last.type == "response.incomplete"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_tools_that_are_forced(client: Any, choice: Any) -> None:
    options = {"input": INPUT, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, **GREEDY}
    whole = client.responses.create(**options)
    [call] = [item for item in whole.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert is_weather(json.loads(call.arguments))
    events = list(client.responses.create(stream=True, **options))
    deltas = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert deltas == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    turns = [{"role": "user", "content": INPUT}, call, result]
    assert client.responses.create(input=turns, tools=[TOOL], max_output_tokens=16, **GREEDY).object == "response"


def test_parse(client: Any) -> None:
    whole = client.responses.parse(input=INPUT, text_format=Forecast, **GREEDY)
    assert isinstance(whole.output_parsed, Forecast)


def test_what_is_not_kept_is_said(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(input=INPUT, previous_response_id="resp_1", **GREEDY)
    assert stored.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as hot:
        client.responses.create(input=INPUT, model=MODEL, temperature=9)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input=INPUT, model="gpt-17")


def test_leaving_a_stream_gives_everything_back(client: Any, service: Service) -> None:
    options = {"input": INPUT, "model": MODEL, "max_output_tokens": 1900, "extra_body": {"ignore_eos": True}}
    with client.responses.create(stream=True, **options) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
        assert service.engine()["running"] == 1
    service.wait_idle()
