import json
from typing import Any

import pytest

from api_server.errors import ApiError
from api_server.schema.decode import decode
from api_server.schema.requests import ChatRequest
from api_server.schema.tools import MAX_TOOLS
from api_server.tools import Calling, calling_of, describe

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS, "strict": True}
CLOCK = {"name": "get_time"}


def tools(*functions: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": function} for function in functions]


def found(**fields: object) -> Calling | None:
    messages = [{"role": "user", "content": "hi"}]
    return calling_of(decode(json.dumps({"messages": messages, **fields}).encode(), ChatRequest))


def calling(**fields: object) -> Calling:
    calling = found(**{"tools": tools(WEATHER, CLOCK), **fields})
    assert calling is not None
    return calling


def refused(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        found(**fields)
    assert caught.value.status == 400
    return caught.value


def names(calling: Calling) -> list[str]:
    return [signature.name for signature in calling.signatures]


def choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allow(mode: str, *allowed: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [choice(name) for name in allowed]}}


def test_tools_may_be_called_unless_the_choice_says_otherwise() -> None:
    for wanted in (None, "auto"):
        free = calling(tool_choice=wanted)
        assert names(free) == ["get_weather", "get_time"]
        assert (free.forced, free.named, free.parallel, free.max_calls, free.legacy) == (
            False,
            False,
            True,
            None,
            False,
        )
    required = calling(tool_choice="required")
    assert (required.forced, required.named, required.parallel) == (True, False, True)
    assert found(tools=tools(WEATHER), tool_choice="none") is None


def test_one_call_at_a_time() -> None:
    single = calling(tool_choice="required", parallel_tool_calls=False)
    assert (single.parallel, single.max_calls) == (False, 1)


def test_a_named_function_is_the_one_call_and_the_model_is_told_of_all() -> None:
    named = calling(tool_choice=choice("get_time"))
    assert names(named) == ["get_time"]
    assert (named.forced, named.named, named.max_calls) == (True, True, 1)
    assert [function.name for function in named.functions] == ["get_weather", "get_time"]


def test_of_allowed_tools_the_others_are_left_out() -> None:
    for mode, forced in (("auto", False), ("required", True)):
        some = calling(tool_choice=allow(mode, "get_time"))
        assert names(some) == [function.name for function in some.functions] == ["get_time"]
        assert (some.forced, some.named, some.parallel) == (forced, False, True)
    assert found(tools=tools(WEATHER), tool_choice=allow("auto")) is None


def test_functions_are_the_older_tools() -> None:
    old = found(functions=[WEATHER, CLOCK])
    assert old is not None
    assert (names(old), old.legacy, old.forced, old.max_calls) == (["get_weather", "get_time"], True, False, 1)
    named = found(functions=[WEATHER, CLOCK], function_call={"name": "get_time"})
    assert named is not None
    assert (names(named), named.forced, named.named) == (["get_time"], True, True)
    assert found(functions=[WEATHER], function_call="none") is None


def test_without_tools_there_is_nothing_to_call() -> None:
    for fields in ({}, {"tools": []}, {"tools": [], "tool_choice": "auto"}, {"tool_choice": "none"}, {"functions": []}):
        assert found(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": choice("get_time")}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": tools(WEATHER), "tool_choice": choice("get_time")}, "tool_choice"),
        ({"tools": tools(WEATHER), "tool_choice": allow("auto", "get_time")}, "tool_choice"),
        ({"tools": tools(WEATHER), "tool_choice": allow("required")}, "tool_choice"),
        ({"tools": tools(WEATHER), "functions": [CLOCK]}, "tools"),
        ({"tool_choice": "auto", "functions": [CLOCK]}, "tool_choice"),
        ({"function_call": "auto"}, "function_call"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"functions": [CLOCK], "function_call": {"name": "get_weather"}}, "function_call"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    assert refused(**fields).param == param


def test_tools_that_are_no_functions_are_refused_by_type() -> None:
    error = refused(tools=[*tools(CLOCK), {"type": "web_search"}])
    assert (error.code, error.param) == ("unsupported_parameter", "tools")
    assert "tools[1]" in error.message
    assert "web_search" in error.message


def test_a_schema_has_at_most_64_kib() -> None:
    def sized(size: int) -> dict[str, Any]:
        return {"name": "f", "parameters": {"a": "x" * (size - len('{"a":""}'))}}

    assert found(tools=tools(sized(65_536))) is not None
    assert refused(tools=tools(CLOCK, sized(65_537))).param == "tools"
    assert refused(functions=[sized(65_537)]).param == "functions"
    assert refused(tools=tools(sized(65_537)), tool_choice="none").param == "tools"


def test_as_many_tools_as_openai_takes() -> None:
    many = calling(tools=tools(*({"name": f"f{i}"} for i in range(MAX_TOOLS))))
    assert len(many.signatures) == MAX_TOOLS


def test_templates_see_openais_form_without_what_is_for_the_server() -> None:
    assert json.dumps(describe(calling().functions)) == json.dumps(
        [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "description": "The weather of a city.",
                    "parameters": PARAMETERS,
                },
            },
            {
                "type": "function",
                "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
            },
        ]
    )
