"""Calls of functions, as OpenAI's own client makes and reads them. The built-in model knows no tools, so all of these
are forced: what it writes is held to the form of a call, and to the function's schema."""

import json
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ParsedChatCompletion
from pydantic import BaseModel, ConfigDict, Field

from tests.e2e.server import Server

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
MODEL = "tokenwire-tiny"
MAX_TOKENS = 200


class GetWeather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Oslo", "Łódź"]
    days: int = Field(ge=1, le=5)
    places: list[Literal["inside", "outside"]] = Field(max_length=2)


class Stop(BaseModel):
    """Nothing more is to be done."""

    model_config = ConfigDict(extra="forbid")


TOOLS: list[Any] = [openai.pydantic_function_tool(GetWeather), openai.pydantic_function_tool(Stop)]
KINDS: dict[str, type[BaseModel]] = {"GetWeather": GetWeather, "Stop": Stop}
NAMED: Any = {"type": "function", "function": {"name": "GetWeather"}}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def ask(client: openai.OpenAI, **more: Any) -> Any:
    """A chat with tools; a stream if `more` says so."""
    options = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "max_tokens": MAX_TOKENS}
    return client.chat.completions.create(**{**options, **more})


def check(call: Any) -> None:
    """The arguments are what the function takes."""
    KINDS[call.function.name].model_validate_json(call.function.arguments)


def test_a_named_function_is_called(client: openai.OpenAI) -> None:
    for choice in ask(client, tool_choice=NAMED, seed=1, n=3).choices:
        [call] = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "GetWeather")
        assert call.id.startswith("call_")
        check(call)
        assert choice.message.content is None
        assert choice.finish_reason == "stop"  # as OpenAI has it, if the request named the function


def test_some_function_is_called(client: openai.OpenAI) -> None:
    completion = ask(client, tool_choice="required", parallel_tool_calls=False, n=4, seed=1)
    for choice in completion.choices:
        [call] = choice.message.tool_calls
        check(call)
        assert choice.finish_reason == "tool_calls"
    assert len({choice.message.tool_calls[0].id for choice in completion.choices}) == 4


def test_several_calls_at_once(client: openai.OpenAI) -> None:
    found = ask(client, tool_choice="required", seed=2, n=4, max_tokens=100).choices
    for choice in found:
        calls = choice.message.tool_calls
        assert len({call.id for call in calls}) == len(calls)
        whole = calls if choice.finish_reason == "tool_calls" else calls[:-1]
        for call in whole:
            check(call)


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    options = {"tool_choice": "required", "tools": TOOLS[:1], "parallel_tool_calls": False, "temperature": 0}
    whole = ask(client, **options).choices[0]
    chunks = list(ask(client, **options, stream=True, stream_options={"include_usage": True}))
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    first, *rest = deltas
    assert (first.index, first.type) == (0, "function")
    assert first.id.startswith("call_")
    assert all(call.id is call.type is call.function.name is None for call in rest)
    assert len(rest) > 3
    [call] = whole.message.tool_calls
    assert first.function.name == call.function.name
    assert "".join(call.function.arguments for call in deltas) == call.function.arguments
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert finishes == [None] * (len(finishes) - 1) + ["tool_calls"]
    assert all(not choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 0


def test_the_client_parses_what_is_called(client: openai.OpenAI) -> None:
    parsed: ParsedChatCompletion[None] = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=NAMED, max_tokens=MAX_TOKENS, seed=3
    )
    [call] = parsed.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_the_clients_stream_helper_follows_a_call(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=NAMED, max_tokens=MAX_TOKENS, seed=4
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)
    told = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in told) == call.function.arguments
    [done] = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert done.arguments == call.function.arguments


def test_the_older_functions(client: openai.OpenAI) -> None:
    functions: list[Any] = [tool["function"] for tool in TOOLS]
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "functions": functions,
        "function_call": {"name": "GetWeather"},
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    [choice] = client.chat.completions.create(**options).choices
    called = choice.message.function_call
    assert called is not None
    GetWeather.model_validate_json(called.arguments)
    assert choice.message.tool_calls is None
    deltas = [chunk.choices[0].delta.function_call for chunk in client.chat.completions.create(**options, stream=True)]
    told = [delta for delta in deltas if delta is not None]
    assert [delta.name for delta in told] == ["GetWeather"] + [None] * (len(told) - 1)
    assert "".join(delta.arguments for delta in told) == called.arguments


def test_a_conversation_goes_on_behind_a_call(client: openai.OpenAI) -> None:
    [asked] = ask(client, tool_choice=NAMED, temperature=0).choices
    call = asked.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'}
    options = {"tool_choice": "none", "max_tokens": 20, "extra_body": {"min_tokens": 10}}
    [answer] = ask(client, messages=[*QUESTION, asked.message, result], **options).choices
    assert answer.message.content
    assert answer.message.tool_calls is None


def test_tools_that_need_not_be_called_change_nothing_for_a_model_that_knows_none(server: Server) -> None:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 20}
    plain = server.post("/v1/chat/completions", body).json()["choices"][0]
    for choice in ("auto", "none", None):
        with_tools = server.post("/v1/chat/completions", {**body, "tools": TOOLS, "tool_choice": choice}).json()
        assert with_tools["choices"][0] == plain


def test_log_probabilities_and_token_ids_come_with_calls(server: Server) -> None:
    body = {
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": NAMED,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "logprobs": True,
        "return_token_ids": True,
    }
    [whole] = server.post("/v1/chat/completions", body).json()["choices"]
    events = server.post("/v1/chat/completions", {**body, "stream": True}).events()
    choices = [event["choices"][0] for event in events]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == whole["token_ids"]
    told = [entry["token"] for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert told == [entry["token"] for entry in whole["logprobs"]["content"]]
    assert "".join(told).startswith('<tool_call>\n{"name": "GetWeather"')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"type": "object", "properties": {"a": {"pattern": "(?=a)"}}},
                        },
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_refusals_name_the_field(server: Server, fields: dict[str, Any], param: str) -> None:
    epoch = server.engine()["epoch"]
    answer = server.post("/v1/chat/completions", {"messages": QUESTION, **fields})
    assert answer.status == 400
    assert answer.json()["error"]["param"] == param
    assert server.engine()["epoch"] == epoch


def test_arguments_are_json_whatever_the_schema(server: Server) -> None:
    """Values of all kinds that JSON has, nested, required and not."""
    parameters = {
        "type": "object",
        "properties": {
            "flag": {"type": "boolean"},
            "none": {"type": "null"},
            "number": {"enum": [1.5, -2]},
            "kind": {"anyOf": [{"const": 'a\n"b"'}, {"type": "integer", "minimum": 0, "maximum": 9}]},
            "inner": {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/x"}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
        "required": ["inner"],
        "$defs": {"x": {"enum": ["漢字", "🎉"]}},
    }
    body = {
        "messages": QUESTION,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "max_tokens": MAX_TOKENS,
        "n": 4,
        "seed": 3,
    }
    for choice in server.post("/v1/chat/completions", body).json()["choices"]:
        arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
        assert arguments["inner"]["x"] in ("漢字", "🎉")
        assert arguments.keys() <= parameters["properties"].keys()
