"""openai-python, sync and async: every method that the server has a route for."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from tests.clients.service import CLOCK, KEY, MODEL, QUESTION, STORY, TOOL, WEATHER, Service, is_weather

openai = pytest.importorskip("openai")
from pydantic import BaseModel  # noqa: E402 (comes with openai)

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[Any]:
    with openai.OpenAI(base_url=service.openai_url, api_key=KEY, max_retries=0) as found:
        yield found


def asynchronous(service: Service) -> Any:
    return openai.AsyncOpenAI(base_url=service.openai_url, api_key=KEY, max_retries=0)


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


# ---------------------------------------------------------------------------------------------------- chat


def test_chat_is_the_same_streamed_and_whole(client: Any) -> None:
    whole = client.chat.completions.create(messages=QUESTION, **GREEDY)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(messages=QUESTION, **GREEDY, **options)
    assert text_of(chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason == "stop"
    assert (chunks[0].choices[0].delta.role, whole.choices[0].message.role) == ("assistant", "assistant")
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens > whole.usage.prompt_tokens > 0
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_choices_seeds_and_limits(client: Any) -> None:
    story = [{"role": "user", "content": "Tell me a story."}]
    options = {"model": MODEL, "n": 3, "seed": 7, "temperature": 2, "max_completion_tokens": 9}
    first, again = (client.chat.completions.create(messages=story, **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert first.usage.completion_tokens <= 27
    chunks = list(client.chat.completions.create(messages=story, stream=True, **options))
    assert [text_of(chunks, index) for index in range(3)] == texts


@pytest.mark.parametrize("stop", ["cache", ["nonsense", "cache"]])
def test_stop_strings(client: Any, stop: str | list[str]) -> None:
    whole = client.chat.completions.create(messages=QUESTION, stop=stop, **GREEDY)
    chunks = list(client.chat.completions.create(messages=QUESTION, stop=stop, stream=True, **GREEDY))
    assert "cache" not in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert text_of(chunks) == whole.choices[0].message.content


def test_logprobs_of_chat(client: Any) -> None:
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6, **GREEDY}
    whole = client.chat.completions.create(messages=QUESTION, **options).choices[0]
    chunks = list(client.chat.completions.create(messages=QUESTION, stream=True, **options))
    assert "".join(entry.token for entry in whole.logprobs.content) == whole.message.content
    for entry in whole.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
        assert bytes(entry.bytes).decode() == entry.token
    streamed = [entry for chunk in chunks for c in chunk.choices if c.logprobs for entry in c.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.logprobs.content]


def test_extensions_go_through(client: Any) -> None:
    body = {"top_k": 1, "min_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12, extra_body=body)
    assert whole.usage.completion_tokens == 12
    assert len(whole.choices[0].token_ids) == 12


def test_the_stream_helper_tells_the_same(client: Any) -> None:
    with client.chat.completions.stream(messages=QUESTION, **GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    assert final.choices[0].message.content == client.chat.completions.create(
        messages=QUESTION, **GREEDY
    ).choices[0].message.content  # fmt: skip


# ---------------------------------------------------------------------------------------------------- completions


def test_completions_are_the_same_streamed_and_whole(client: Any) -> None:
    options = {"prompt": STORY, "max_tokens": 20, "logprobs": 2, **GREEDY}
    whole = client.completions.create(**options)
    options |= {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.completions.create(**options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 20
    logprobs = whole.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 20
    assert [token for chunk in chunks for token in chunk.choices[0].logprobs.tokens] == logprobs.tokens


def test_several_prompts_and_echo(client: Any) -> None:
    whole = client.completions.create(prompt=[STORY, "Hello"], n=2, max_tokens=4, echo=True, **GREEDY)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith((STORY, "Hello")[choice.index // 2]) for choice in whole.choices] == [True] * 4


def test_token_ids_as_prompt(client: Any) -> None:
    options = {"max_tokens": 8, **GREEDY}
    text = client.completions.create(prompt=STORY, **options, extra_body={"return_token_ids": True}).choices[0]
    ids = client.completions.create(prompt=text.prompt_token_ids, **options).choices[0]
    assert ids.text == text.text


# ---------------------------------------------------------------------------------------------------- errors


def test_errors_are_what_they_are(client: Any, service: Service) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=100_000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "max_tokens")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-17", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")
    with (
        openai.OpenAI(base_url=service.openai_url, api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as unknown,
    ):
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"


@pytest.mark.parametrize("stream", [False, True])
def test_a_time_limit(client: Any, stream: bool) -> None:
    """Before the first token it is a status, later an error in the stream."""
    with pytest.raises(openai.APIError) as late:
        list(
            client.completions.create(
                model=MODEL,
                prompt=STORY,
                max_tokens=2000,
                stream=stream,
                extra_body={"timeout": 0.2, "ignore_eos": True},
            )
        )
    assert late.value.code == "request_timeout"


def test_a_request_that_is_cancelled_from_outside(client: Any, service: Service) -> None:
    body = {"ignore_eos": True}
    stream = client.completions.create(model=MODEL, prompt=STORY, max_tokens=2000, stream=True, extra_body=body)
    answer = service.post(f"/v1/requests/{next(stream).id}/cancel", {}, {"Authorization": f"Bearer {KEY}"})
    assert answer.status == 200
    with pytest.raises(openai.APIError) as ended:
        list(stream)
    assert (ended.value.code, ended.value.type) == ("request_cancelled", "invalid_request_error")
    service.wait_idle()


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).max_model_len == 2048


def test_headers(client: Any) -> None:
    answer = client.chat.completions.with_raw_response.create(
        messages=QUESTION, max_tokens=1, **GREEDY, extra_headers={"X-Request-Id": "mine"}
    )
    assert answer.headers["x-request-id"] == "mine"
    assert answer.parse()._request_id == "mine"


# ---------------------------------------------------------------------------------------------------- leaving early


def test_leaving_a_stream_gives_everything_back(client: Any, service: Service) -> None:
    body = {"ignore_eos": True}
    with client.completions.create(model=MODEL, prompt=STORY, max_tokens=2000, stream=True, extra_body=body) as stream:
        next(stream)
        assert service.engine()["running"] == 1
    service.wait_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_task_gives_everything_back(service: Service, stream: bool) -> None:
    async def ask(client: Any) -> None:
        options = {"model": MODEL, "prompt": STORY, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
        answer = await client.completions.create(stream=stream, **options)
        async for _ in answer:
            pass

    async def main() -> None:
        async with asynchronous(service) as client:
            task = asyncio.create_task(ask(client))
            while not await asyncio.to_thread(lambda: service.engine()["running"]):
                assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    service.wait_idle()


def test_many_at_once(service: Service) -> None:
    async def main() -> list[str]:
        async with asynchronous(service) as client:

            async def ask() -> str:
                chunks = await client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY)
                return text_of([chunk async for chunk in chunks])

            return list(await asyncio.gather(*(ask() for _ in range(16))))

    assert len(set(asyncio.run(main()))) == 1


# ---------------------------------------------------------------------------------------------------- structured


class Forecast(BaseModel):
    city: Literal["Paris", "Tokyo", "Lima"]
    sunny: bool


def test_parse(client: Any) -> None:
    whole = client.chat.completions.parse(messages=QUESTION, response_format=Forecast, **GREEDY)
    assert isinstance(whole.choices[0].message.parsed, Forecast)
    with client.chat.completions.stream(messages=QUESTION, response_format=Forecast, **GREEDY) as stream:
        for _ in stream:
            pass
    assert stream.get_final_completion().choices[0].message.parsed == whole.choices[0].message.parsed


def test_json_schema(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER}}
    whole = client.chat.completions.create(messages=QUESTION, response_format=form, **GREEDY)
    assert is_weather(json.loads(whole.choices[0].message.content))


# ---------------------------------------------------------------------------------------------------- tools


def called(chunks: list[Any]) -> list[tuple[str, str, str]]:
    """(id, name, arguments) of the calls of a stream: the first two come with a call's first delta and never again."""
    calls: list[list[str]] = []
    for chunk in chunks:
        for call in (chunk.choices and chunk.choices[0].delta.tool_calls) or ():
            if call.index == len(calls):
                assert call.type == "function"
                calls.append([call.id, call.function.name, call.function.arguments])
            else:
                assert (call.id, call.function.name, call.type) == (None, None, None)
                calls[call.index][2] += call.function.arguments
    return [(call, name, arguments) for call, name, arguments in calls]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_tools_that_are_forced(client: Any, choice: Any) -> None:
    tools = [TOOL, CLOCK] if choice != "required" else [TOOL]
    options = {"messages": QUESTION, "tools": tools, "tool_choice": choice, "parallel_tool_calls": False, **GREEDY}
    [whole] = client.chat.completions.create(**options).choices
    [call] = whole.message.tool_calls
    assert call.function.name == "get_weather"
    assert is_weather(json.loads(call.function.arguments))
    assert whole.message.content is None
    chunks = list(client.chat.completions.create(stream=True, **options))
    [(identity, name, arguments)] = called(chunks)
    assert identity
    assert (name, arguments) == ("get_weather", call.function.arguments)
    assert whole.finish_reason == [c.choices[0].finish_reason for c in chunks if c.choices][-1]
    assert whole.finish_reason == ("tool_calls" if choice == "required" else "stop")


def test_the_answer_to_a_call_goes_back(client: Any) -> None:
    options = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **GREEDY}
    message = client.chat.completions.create(messages=QUESTION, **options).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in message.tool_calls]
    after = client.chat.completions.create(
        messages=[*QUESTION, message, *results], tools=[TOOL], max_tokens=8, **GREEDY
    )
    assert after.choices[0].message.role == "assistant"


def test_no_tool_is_called_where_none_may_be(client: Any) -> None:
    plain = client.chat.completions.create(messages=QUESTION, tools=[TOOL], tool_choice="none", **GREEDY)
    assert plain.choices[0].message.tool_calls is None
    assert plain.choices[0].finish_reason == "stop"


def test_the_stream_helper_with_tools(client: Any) -> None:
    tool = openai.pydantic_function_tool(Forecast)
    options = {"messages": QUESTION, "tools": [tool], "tool_choice": "required", **GREEDY}
    with client.chat.completions.stream(**options) as stream:
        kinds = [event.type for event in stream]
    [call, *_] = stream.get_final_completion().choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Forecast)
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
