"""Tools, calls, their results and thoughts, as templates in the manner of real ones put them into words."""

import json
from typing import Any

import msgspec
import pytest

from api_server.chat import ChatTemplate
from api_server.errors import ApiError
from api_server.schema.messages import Message
from api_server.schema.tools import FunctionDefinition
from api_server.tools import describe
from tests.api_server.templates import LLAMA, QWEN

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = describe([FunctionDefinition("get_weather", "Ünïcode <b>weather</b>.", PARAMETERS), FunctionDefinition("now")])
USER = {"role": "user", "content": "Paris?"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Paris", "days": [1, 2]}'},
}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "tool_call_id": "call_1", "content": '{"celsius": 21}'}


def render(source: str, *items: dict[str, Any], tools: list[dict[str, Any]] = TOOLS, **kwargs: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, 10_000)
    return template.render(msgspec.convert(items, list[Message]), kwargs, generate=True, resume=False, tools=tools)


def test_tools_are_shown_as_json_one_a_line() -> None:
    prompt = render(QWEN, USER)
    shown = prompt.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line) for line in shown] == TOOLS
    assert "Ünïcode <b>weather</b>." in shown[0]  # as it was, for no model learnt it escaped
    assert '"parameters": {"type": "object", "properties": {}}' in shown[1]
    assert prompt.endswith("<|im_start|>user\nParis?<|im_end|>\n<|im_start|>assistant\n")


def test_without_tools_templates_say_nothing_of_them() -> None:
    assert "tool" not in render(QWEN, USER, tools=[])
    prompt = render(LLAMA, USER, tools=[])
    assert prompt.startswith("<s><|start_header_id|>user")
    assert "ipython" not in prompt


def test_calls_and_results_are_part_of_the_conversation() -> None:
    prompt = render(QWEN, USER, ASKED, ANSWERED, {**ANSWERED, "content": "20"})
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n'
        "</tool_call><|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"celsius": 21}\n</tool_response>\n<tool_response>\n20\n</tool_response>'
        "<|im_end|>\n<|im_start|>assistant\n"
    ) in prompt


def test_llama_has_its_own_words_for_all_of_it() -> None:
    prompt = render(LLAMA, USER, ASKED, ANSWERED)
    assert "Environment: ipython\n" in prompt
    assert json.dumps(TOOLS[1], indent=4) in prompt
    assert '{"name": "get_weather", "parameters": {"city": "Paris", "days": [1, 2]}}<|eot_id|>' in prompt
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"celsius\\": 21}"<|eot_id|>' in prompt


def test_what_a_template_refuses_is_a_400_in_its_words() -> None:
    with pytest.raises(ApiError) as caught:
        render(LLAMA, USER, {**ASKED, "tool_calls": [CALL, CALL]})
    assert (caught.value.status, caught.value.param) == (400, "messages")
    assert "single tool-calls" in caught.value.message


def test_an_earlier_thought_is_shown_where_the_template_shows_thoughts() -> None:
    thought = {"role": "assistant", "content": "21 degrees.", "reasoning_content": "It is warm."}
    assert "<think>\nIt is warm.\n</think>\n\n21 degrees.<|im_end|>" in render(QWEN, USER, thought, USER)


def test_a_message_that_only_calls_has_no_content_in_the_way_of_its_template() -> None:
    show = "{% for m in messages %}"
    iterating = show + "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}|"
    assert render(iterating + "{% endfor %}", USER, ASKED) == "Paris?||"
    for asked in ("m['content'] is not none", "m.content is none", "m.content != none"):
        asking = show + "{% if " + asked + " %}A{% else %}B{% endif %}{% endfor %}"
        assert set(render(asking, USER, ASKED)) == {"A", "B"}


def test_a_result_names_its_function_for_templates_that_ask() -> None:
    naming = "{% for m in messages %}[{{ m.name }}]{% endfor %}"
    other = {**CALL, "id": "call_2", "function": {"name": "now", "arguments": ""}}
    both = {**ASKED, "tool_calls": [CALL, other]}
    results = [{**ANSWERED, "tool_call_id": "call_2"}, ANSWERED, {**ANSWERED, "tool_call_id": "call_3"}]
    assert render(naming, USER, both, *results) == "[][][now][get_weather][]"
    assert render(naming, USER, both, {**ANSWERED, "name": "own"}) == "[][][own]"


def test_the_older_spelling_is_shown_alike() -> None:
    older = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    result = {"role": "function", "name": "get_weather", "content": '{"celsius": 21}'}
    assert render(QWEN, USER, older, result) == render(QWEN, USER, ASKED, ANSWERED)


def test_a_request_says_how_its_template_is_to_show_tools() -> None:
    assert "Respond in the format" in render(LLAMA, USER)
    assert "Respond in the format" not in render(LLAMA, USER, tools_in_user_message=False)
    assert render(QWEN, USER, enable_thinking=False).endswith("<think>\n\n</think>\n\n")
