import json
from typing import Any

import pytest

from api_server.dialects import named
from api_server.dialects.responses import PARAMS, chat_request
from api_server.errors import ApiError
from api_server.schema.decode import decode
from api_server.schema.formats import JsonObjectFormat, JsonSchema, JsonSchemaFormat, TextFormat
from api_server.schema.messages import ContentPart, FunctionCall, Message, ToolCall
from api_server.schema.requests import ChatRequest
from api_server.schema.responses_api import ResponsesRequest
from api_server.schema.tools import (
    AllowedTool,
    AllowedTools,
    AllowedToolsChoice,
    FunctionDefinition,
    NamedFunction,
    NamedTool,
    Tool,
)

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
SAID = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}


FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


def chat(**body: Any) -> ChatRequest:
    return chat_request(decode(json.dumps({"input": "hi", **body}).encode(), ResponsesRequest))


def messages(*items: Any) -> list[Message]:
    return chat(input=list(items)).messages


def refused(**body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught, named(PARAMS):
        chat(**body)
    assert caught.value.status == 400
    return caught.value


def test_a_text_is_the_users_and_instructions_are_the_systems() -> None:
    assert chat(instructions="Be brief.").messages == [Message("system", "Be brief."), Message("user", "hi")]


def test_messages_as_texts_and_as_parts() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    spoken = {**SAID, "content": [{"type": "output_text", "text": "c", "annotations": []}]}
    no = {**SAID, "content": [{"type": "refusal", "refusal": "No."}]}
    assert messages({"role": "developer", "content": "d"}, {"role": "user", "content": parts}, spoken, USER, no) == [
        Message("developer", "d"),
        Message("user", [ContentPart("text", "a"), ContentPart("text", "b")]),
        Message("assistant", [ContentPart("text", "c")]),
        Message("user", "hi"),
        Message("assistant", [ContentPart("refusal", refusal="No.")]),
    ]


def test_the_items_of_a_turn_are_one_message() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    spoken = {**SAID, "content": [{"type": "output_text", "text": "Let me see."}]}
    result = {"type": "function_call_output", "call_id": "c1", "output": "4"}
    other = {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "5"}]}
    found = messages(USER, thought, spoken, CALL, {**CALL, "call_id": "c2"}, result, other, {**SAID, "content": "9"})
    calls = [ToolCall(FunctionCall("f", "{}"), "c1"), ToolCall(FunctionCall("f", "{}"), "c2")]
    assert found == [
        Message("user", "hi"),
        Message("assistant", [ContentPart("text", "Let me see.")], tool_calls=calls, reasoning_content="Hm."),
        Message("tool", "4", tool_call_id="c1"),
        Message("tool", [ContentPart("text", "5")], tool_call_id="c2"),
        Message("assistant", "9"),
    ]


def test_each_text_and_each_thought_behind_a_call_begins_a_turn() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    calls = [ToolCall(FunctionCall("f", "{}"), "c1")]
    assert messages({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, CALL) == [
        Message("assistant", "a"),
        Message("assistant", "b", tool_calls=calls),
    ]
    assert messages(CALL, thought, CALL) == [
        Message("assistant", None, tool_calls=calls),
        Message("assistant", None, tool_calls=calls, reasoning_content="Hm."),
    ]


def test_reasoning_that_can_not_be_read_is_left_out() -> None:
    hidden = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA", "content": None}
    assert messages(hidden, USER, hidden) == [Message("user", "hi")]


def test_parameters() -> None:
    request = chat(
        model="m", max_output_tokens=5, temperature=0.5, top_p=0.9, stream=True, user="u", metadata={"a": "b"},
        seed=7, top_k=3, ignore_eos=True, stop=["x"], timeout=2.5,
    )  # fmt: skip
    assert (request.model, request.max_completion_tokens, request.temperature, request.top_p) == ("m", 5, 0.5, 0.9)
    assert (request.stream, request.user, request.metadata) == (True, "u", {"a": "b"})
    assert (request.seed, request.top_k, request.ignore_eos, request.stop, request.timeout) == (7, 3, True, ["x"], 2.5)
    assert request.max_tokens is None


def test_log_probabilities_are_included_on_demand() -> None:
    assert not chat().logprobs
    asked = chat(include=["message.output_text.logprobs"], top_logprobs=3)
    assert (asked.logprobs, asked.top_logprobs) == (True, 3)
    assert not chat(include=["reasoning.encrypted_content"]).logprobs


def test_the_template_learns_how_much_to_think() -> None:
    assert chat(reasoning={"effort": "low"}).chat_template_kwargs == {"reasoning_effort": "low"}
    silent = {"reasoning_effort": "none", "enable_thinking": False}
    assert chat(reasoning={"effort": "none"}).chat_template_kwargs == silent
    own = {"enable_thinking": True}
    assert chat(reasoning={"effort": "none"}, chat_template_kwargs=own).chat_template_kwargs == {**silent, **own}
    assert chat(reasoning={"summary": "auto"}).chat_template_kwargs is None


def test_tools_and_their_choice() -> None:
    assert chat(tools=[FUNCTION], parallel_tool_calls=False).tools == [
        Tool(FunctionDefinition("f", "d", {"type": "object"}, True))
    ]
    assert chat(tools=[FUNCTION], parallel_tool_calls=False).parallel_tool_calls is False
    assert chat(tool_choice="required").tool_choice == "required"
    assert chat(tool_choice="auto").tool_choice is None  # it goes without saying, also where there are no tools
    assert chat(tool_choice={"type": "function", "name": "f"}).tool_choice == NamedTool(NamedFunction("f"))
    some = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    allowed = AllowedTools("required", [AllowedTool("function", NamedFunction("f"))])
    assert chat(tool_choice=some).tool_choice == AllowedToolsChoice(allowed)


def test_formats() -> None:
    assert chat(text={"verbosity": "low"}).response_format is None
    assert chat(text={"format": {"type": "text"}}).response_format == TextFormat()
    assert chat(text={"format": {"type": "json_object"}}).response_format == JsonObjectFormat()
    flat = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    deep = JsonSchemaFormat(JsonSchema("n", {"type": "object"}, strict=True))
    assert chat(text={"format": flat}).response_format == deep


def test_what_changes_nothing_is_accepted() -> None:
    chat(store=True, background=False, truncation="disabled", previous_response_id=None, service_tier="auto")
    chat(truncation="auto")
    chat(prompt_cache_key="k", safety_identifier="s", max_tool_calls=3, stream_options={"include_obfuscation": False})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "some"}, "truncation"),
        ({"include": ["everything"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input"),
        ({"input": [{"content": "hi"}]}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input"),
        ({"input": [{"type": "function_call_output", "output": "4"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "parameters": {}}]}, "tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "a b", "parameters": {}}]}, "tools"),
        ({"tools": [FUNCTION] * 129}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {"a": {}}}, "metadata"),
    ],
)
def test_what_can_not_be_served_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    error = refused(**body)
    assert error.param == param
    assert param in error.message or f"{param}[0]" in error.message or f"$.{param}" in error.message


def test_a_place_in_the_input_is_named() -> None:
    image = {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image"}]}
    message = refused(input=[USER, image]).message
    assert "input[1].content[1]" in message
    assert "input_image" in message


def test_a_refusal_of_the_chat_names_this_apis_field() -> None:
    with pytest.raises(ApiError) as caught, named(PARAMS):
        raise ApiError("context_length_exceeded", "Too long.", "max_completion_tokens")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_output_tokens")
    with pytest.raises(ApiError) as caught, named(PARAMS):
        raise ApiError("model_not_found", "No such model.", None)
    assert caught.value.param is None
