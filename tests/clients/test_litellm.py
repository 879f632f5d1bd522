"""LiteLLM, by each of its ways to a server like this: OpenAI's, vLLM's and Anthropic's."""

import asyncio
import copy
import gc
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.service import KEY, MODEL, QUESTION, STORY, TOOL, WEATHER, Service, is_weather

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet when it is imported
litellm = pytest.importorskip("litellm")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
WAYS = ("openai", "hosted_vllm", "anthropic")


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """It never closes the connections of an event loop that has ended."""
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(litellm.close_litellm_async_clients())
        litellm.in_memory_llm_clients_cache.flush_cache()
        gc.collect()


def options(service: Service, way: str, **more: Any) -> dict[str, Any]:
    base = service.url if way == "anthropic" else service.openai_url
    found = {"model": f"{way}/{MODEL}", "api_base": base, "api_key": KEY, "temperature": 0, "max_retries": 0}
    return copy.deepcopy(found | {"max_tokens": 100} | more)  # it changes schemas in their place


@pytest.mark.parametrize("way", WAYS)
def test_chat_is_the_same_streamed_and_whole(service: Service, way: str) -> None:
    whole = litellm.completion(messages=QUESTION, **options(service, way))
    more = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(messages=QUESTION, **options(service, way, **more)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    joined = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert joined.choices[0].message.content == text
    assert joined.usage.completion_tokens == whole.usage.completion_tokens > 0


@pytest.mark.parametrize("way", WAYS)
def test_async_streams(service: Service, way: str) -> None:
    async def main() -> str:
        stream = await litellm.acompletion(messages=QUESTION, stream=True, **options(service, way))
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    whole = litellm.completion(messages=QUESTION, **options(service, way))
    assert asyncio.run(main()) == whole.choices[0].message.content


@pytest.mark.parametrize("way", WAYS)
def test_tools(service: Service, way: str) -> None:
    more = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    whole = litellm.completion(messages=QUESTION, **options(service, way, **more))
    calls = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    [arguments] = [json.loads(call.function.arguments) for call in calls]
    assert is_weather({name: arguments[name] for name in ("city", "days")})  # for some it leaves others possible
    chunks = list(litellm.completion(messages=QUESTION, stream=True, **options(service, way, **more)))
    [streamed] = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert json.loads(streamed.function.arguments) == arguments


@pytest.mark.parametrize("way", ["openai", "hosted_vllm"])
def test_json_schema(service: Service, way: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": WEATHER}}
    whole = litellm.completion(messages=QUESTION, response_format=form, **options(service, way))
    assert is_weather(json.loads(whole.choices[0].message.content))


def test_completions(service: Service) -> None:
    more = options(service, "text-completion-openai", max_tokens=10)
    whole = litellm.text_completion(prompt=STORY, **more)
    chunks = list(litellm.text_completion(prompt=STORY, stream=True, **more))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole.choices[0].text


def test_responses(service: Service) -> None:
    more = {"model": f"openai/{MODEL}", "api_base": service.openai_url, "api_key": KEY, "temperature": 0}
    whole = litellm.responses(input="What is a KV cache?", **more)
    events = list(litellm.responses(input="What is a KV cache?", stream=True, **more))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == whole.output[0].content[0].text


@pytest.mark.parametrize("way", WAYS)
def test_errors_are_what_they_are(service: Service, way: str) -> None:
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=QUESTION, **options(service, way, temperature=9))
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=QUESTION, **options(service, way, model=f"{way}/gpt-17"))
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=QUESTION, **options(service, way, api_key="sk-wrong"))


def test_leaving_a_stream_gives_everything_back(service: Service) -> None:
    async def main() -> None:
        more = options(service, "openai", max_tokens=1900, extra_body={"ignore_eos": True})
        stream = await litellm.acompletion(messages=QUESTION, stream=True, **more)
        await anext(aiter(stream))
        assert service.engine()["running"] == 1
        await stream.aclose()

    asyncio.run(main())
    service.wait_idle()
