"""langchain-openai: chat, completions, structured output, tools, and the responses route."""

import asyncio
from typing import Any, Literal

import pytest

from tests.clients.service import KEY, MODEL, STORY, TOOL, Service, is_weather

langchain = pytest.importorskip("langchain_openai")
import openai  # noqa: E402 (langchain-openai needs these)
from langchain_core.messages import HumanMessage  # noqa: E402
from pydantic import BaseModel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
QUESTION = "What is a KV cache?"


def chat(service: Service, **options: Any) -> Any:
    settings = {"model": MODEL, "temperature": 0, "max_retries": 0, "base_url": service.openai_url, "api_key": KEY}
    return langchain.ChatOpenAI(**(settings | options))


def test_chat_is_the_same_streamed_and_whole(service: Service) -> None:
    model = chat(service, stream_usage=True)
    whole = model.invoke(QUESTION)
    joined = None
    for chunk in model.stream(QUESTION):
        joined = chunk if joined is None else joined + chunk
    assert joined is not None
    assert joined.content == whole.content
    assert joined.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"] > 0
    assert joined.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"] == "stop"


def test_async_streams(service: Service) -> None:
    async def main() -> str:
        return "".join([chunk.content async for chunk in chat(service).astream(QUESTION)])

    assert asyncio.run(main()) == chat(service).invoke(QUESTION).content


def test_a_batch(service: Service) -> None:
    answers = chat(service, max_tokens=5).batch([QUESTION, "Hello", QUESTION])
    assert answers[0].content == answers[2].content != answers[1].content


def test_options(service: Service) -> None:
    model = chat(service, stop=["cache"], logprobs=True, top_logprobs=2, seed=3, extra_body={"top_k": 5})
    answer = model.invoke(QUESTION)
    assert "cache" not in answer.content
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    story = [HumanMessage("Tell me a story.")]
    generations = chat(service, n=2, temperature=1.5, max_tokens=6).generate([story])
    assert len(generations.generations[0]) == 2


def test_completions(service: Service) -> None:
    model = langchain.OpenAI(
        model=MODEL, temperature=0, max_tokens=12, max_retries=0, base_url=service.openai_url, api_key=KEY
    )
    assert "".join(model.stream(STORY)) == model.invoke(STORY) != ""


class Forecast(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Tokyo", "Lima"]
    sunny: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(service: Service, method: str) -> None:
    assert isinstance(chat(service).with_structured_output(Forecast, method=method).invoke(QUESTION), Forecast)


def test_tools(service: Service) -> None:
    model = chat(service).bind_tools([TOOL], tool_choice="any", parallel_tool_calls=False)
    [call] = model.invoke(QUESTION).tool_calls
    assert call["name"] == "get_weather"
    assert is_weather(call["args"])
    joined = None
    for chunk in model.stream(QUESTION):
        joined = chunk if joined is None else joined + chunk
    assert joined is not None
    assert [found["args"] for found in joined.tool_calls] == [call["args"]]


def test_responses(service: Service) -> None:
    model = chat(service, use_responses_api=True)
    whole = model.invoke(QUESTION)
    joined = None
    for chunk in model.stream(QUESTION):
        joined = chunk if joined is None else joined + chunk
    assert joined is not None
    assert joined.text == whole.text == chat(service).invoke(QUESTION).content
    assert joined.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"] > 0


def test_errors_are_what_they_are(service: Service) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(service, temperature=9).invoke(QUESTION)
    with pytest.raises(openai.NotFoundError):
        chat(service, model="gpt-17").invoke(QUESTION)
    with pytest.raises(openai.AuthenticationError):
        chat(service, api_key="sk-wrong").invoke(QUESTION)


def test_leaving_a_stream_gives_everything_back(service: Service) -> None:
    model = chat(service, max_tokens=1900, extra_body={"ignore_eos": True})
    stream = model.stream(QUESTION)
    next(stream)
    assert service.engine()["running"] == 1
    stream.close()
    service.wait_idle()
