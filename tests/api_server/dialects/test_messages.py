import json
from typing import Any

import pytest

from api_server.dialects import named
from api_server.dialects.messages import PARAMS, chat_request
from api_server.errors import ApiError
from api_server.schema.anthropic import CountRequest, MessagesRequest
from api_server.schema.decode import decode
from api_server.schema.formats import JsonSchema, JsonSchemaFormat
from api_server.schema.messages import ContentPart, FunctionCall, Message, ToolCall
from api_server.schema.requests import ChatRequest
from api_server.schema.tools import FunctionDefinition, NamedFunction, NamedTool, Tool, ToolChoice

USER = {"role": "user", "content": "hi"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1, "é"]}}


def chat(**body: Any) -> ChatRequest:
    whole = {"messages": [USER], "max_tokens": 5, **body}
    return chat_request(decode(json.dumps(whole).encode(), MessagesRequest))


def messages(*items: Any) -> list[Message]:
    return chat(messages=list(items)).messages


def refused(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught, named(PARAMS):
        chat(**body)
    assert caught.value.status == 400
    return caught.value


def test_the_system_is_the_first_message() -> None:
    assert chat(system="Be brief.").messages == [Message("system", "Be brief."), Message("user", "hi")]
    blocks = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]
    assert chat(system=blocks).messages[0] == Message("system", [ContentPart("text", "a"), ContentPart("text", "b")])
    assert messages(USER, {"role": "system", "content": "c"})[1] == Message("system", "c")


def test_thinking_text_and_calls_are_one_message() -> None:
    turn = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "redacted_thinking", "data": "gAAA"},
        {"type": "text", "text": "Let me see."},
        USE,
    ]
    result = [{"type": "tool_result", "tool_use_id": "t1", "content": "4"}]
    call = ToolCall(FunctionCall("f", '{"a":[1,"é"]}'), "t1")
    assert messages(USER, {"role": "assistant", "content": turn}, {"role": "user", "content": result}) == [
        Message("user", "hi"),
        Message("assistant", [ContentPart("text", "Let me see.")], tool_calls=[call], reasoning_content="Hm."),
        Message("tool", "4", tool_call_id="t1"),
    ]


def test_results_become_messages_of_their_own_in_order() -> None:
    blocks = [
        {"type": "tool_result", "tool_use_id": "t1"},
        {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "5"}]},
        {"type": "text", "text": "Go on."},
        {"type": "tool_result", "tool_use_id": "t3", "content": "No such file.", "is_error": True},
        {
            "type": "tool_result",
            "tool_use_id": "t4",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "is_error": True,
        },
    ]
    assert messages({"role": "user", "content": blocks}) == [
        Message("tool", "", tool_call_id="t1"),
        Message("tool", [ContentPart("text", "5")], tool_call_id="t2"),
        Message("user", [ContentPart("text", "Go on.")]),
        Message("tool", "Error: No such file.", tool_call_id="t3"),
        Message("tool", "Error: a\nb", tool_call_id="t4"),
    ]


def test_the_models_own_last_words_are_continued() -> None:
    assert not chat().continue_final_message
    assert chat(messages=[USER, {"role": "assistant", "content": "I am"}]).continue_final_message


def test_parameters() -> None:
    request = chat(
        model="m", max_tokens=7, stop_sequences=["x", "y"], temperature=0.5, top_p=0.9, top_k=3, stream=True,
        metadata={"user_id": "u"}, seed=1,
    )  # fmt: skip
    assert (request.model, request.max_completion_tokens, request.stop) == ("m", 7, ["x", "y"])
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0.5, 0.9, 3, 1)
    assert (request.stream, request.user) == (True, "u")


def test_the_template_learns_whether_to_think() -> None:
    assert chat().chat_template_kwargs is None
    assert chat(thinking={"type": "enabled", "budget_tokens": 1024}).chat_template_kwargs == {"enable_thinking": True}
    assert chat(thinking={"type": "disabled"}).chat_template_kwargs == {"enable_thinking": False}
    assert chat(output_config={"effort": "low"}).chat_template_kwargs == {"reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("choice", "same"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, NamedTool(NamedFunction("f"))),
    ],
)
def test_tools_and_their_choice(choice: dict[str, Any], same: ToolChoice) -> None:
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": None}
    request = chat(tools=[tool, {**tool, "type": "custom"}], tool_choice=choice)
    assert request.tools == [Tool(FunctionDefinition("f", "d", {"type": "object"}))] * 2
    assert request.tool_choice == same
    assert request.parallel_tool_calls is None
    assert chat(tool_choice={**choice, "disable_parallel_tool_use": True}).parallel_tool_calls is False


def test_a_format_is_a_schema() -> None:
    config = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    assert chat(output_config=config).response_format == JsonSchemaFormat(
        JsonSchema("output", {"type": "object"}, strict=True)
    )


def test_counting_needs_no_limit_and_makes_the_same_messages() -> None:
    body = {"system": "Be brief.", "messages": [USER, {"role": "assistant", "content": "I am"}]}
    counted = chat_request(decode(json.dumps(body).encode(), CountRequest))
    generated = chat(**body)
    assert counted.messages == generated.messages
    assert counted.continue_final_message == generated.continue_final_message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": ["a"] * 5}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "4"}]}]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": [USE]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}, USER]}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"tools": [{"name": "f"}]}, "tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    error = refused(**body)
    assert error.param == param
    assert param in json.loads(error.anthropic_body)["error"]["message"]


def test_a_place_in_the_messages_is_named() -> None:
    image = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}
    message = refused(messages=[USER, image]).message
    assert "messages.1.content.1" in message
    assert "image" in message
