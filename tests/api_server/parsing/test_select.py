import pytest

from api_server.parsing.select import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    WITHOUT_DIALECT,
    opens_thought,
    reader,
    reasoning_dialect,
    tool_dialect,
)
from tests.api_server.parsing.reading import Reading, read

QWEN = """{%- if tools %}Return a json object within <tool_call></tool_call> tags:
<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>{%- endif %}
{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
HERMES = (
    """{{- "<tool_call>\\n" }}{{- '"arguments": ' }}{{- call.arguments|tojson }}{{- '"name": "' }}{{- call.name }}"""
)
QWEN_CODER = """<tool_call>\\n<function=example>\\n<parameter=a>1</parameter>\\n</function> {{ "arguments" }}"""
GLM = """<tool_call>{function-name}\\n<arg_key>{key}</arg_key> {{ tc["arguments"] }}"""
LLAMA_31 = """{{- "Environment: ipython\\n" }}{{- '"parameters": ' }}{%- if builtin %}{{- "<|python_tag|>" }}"""
LLAMA_32_PYTHONIC = """{{- "Environment: ipython\\n" }}{{- "Respond in the format [func(param=value), g()]" }}
{{- 'of "parameters": ' }}"""
LLAMA_4 = """{{- 'Use exact format: [name1(p1=v1, p2=v2), name2()]' }}{{- "<|header_start|>ipython<|header_end|>" }}"""
DEEPSEEK_R1 = """{% set content = content.split('</think>')[-1] %}{{ '<think>\\n' }}"""
PLAIN = """{% for message in messages %}{{ message.content }}{% endfor %}"""


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (QWEN, "hermes"),
        (HERMES, "hermes"),
        (QWEN_CODER, None),
        (GLM, None),
        (LLAMA_31, "llama3_json"),
        (LLAMA_32_PYTHONIC, "pythonic"),
        (LLAMA_4, "pythonic"),
        (DEEPSEEK_R1, None),
        (PLAIN, None),
        (None, None),
    ],
)
def test_a_template_shows_how_its_model_calls(template: str | None, name: str | None) -> None:
    dialect = tool_dialect("auto", template)
    assert (dialect and dialect.name) == name


@pytest.mark.parametrize(
    ("template", "name"), [(QWEN, "think"), (DEEPSEEK_R1, "think"), (LLAMA_31, None), (PLAIN, None), (None, None)]
)
def test_and_whether_it_thinks(template: str | None, name: str | None) -> None:
    dialect = reasoning_dialect("auto", template)
    assert (dialect and dialect.name) == name


def test_a_name_goes_before_the_template() -> None:
    for name in TOOL_PARSERS[2:]:
        dialect = tool_dialect(name, QWEN)
        assert dialect is not None
        assert dialect.name == name
    for name in REASONING_PARSERS[2:]:
        thinks = reasoning_dialect(name, None)
        assert thinks is not None
        assert thinks.name == name
    assert tool_dialect("none", QWEN) is None
    assert reasoning_dialect("none", QWEN) is None


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="xml is none of auto, none, hermes, pythonic, llama3_json"):
        tool_dialect("xml", QWEN)
    with pytest.raises(ValueError, match="r2 is none of auto, none, think, qwen3, deepseek_r1"):
        reasoning_dialect("r2", QWEN)


@pytest.mark.parametrize(
    ("tail", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<｜Assistant｜><think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
        ("What does <think> mean?", False),
        ("", False),
    ],
)
def test_the_prompts_end_says_whether_a_thought_is_open(tail: str, opens: bool) -> None:
    assert opens_thought(tail) is opens
    for name in ("think", "qwen3"):
        dialect = reasoning_dialect(name, None)
        assert dialect is not None
        assert dialect.opened(tail) is opens


def test_an_eager_model_thinks_unless_the_prompt_has_closed_the_thought() -> None:
    dialect = reasoning_dialect("deepseek_r1", None)
    assert dialect is not None
    assert dialect.opened("<｜Assistant｜>")
    assert dialect.opened("<｜Assistant｜><think>\n")
    assert not dialect.opened("<｜Assistant｜></think>")


SAMPLES = {
    "hermes": '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name": "f"}</tool_call>',
    "pythonic": "[f(), f()]",
    "llama3_json": '{"name": "f", "parameters": {}}; {"name": "f"}',
}


@pytest.mark.parametrize("name", TOOL_PARSERS[2:])
def test_each_dialect_has_its_reader(name: str) -> None:
    dialect = tool_dialect(name, None)
    sample = SAMPLES[name]
    assert read(reader(dialect, ["f"]), sample) == Reading("", "", [("f", "{}")] * 2)
    assert read(reader(dialect, ["f"], max_calls=1), sample) == Reading("", "", [("f", "{}")])
    assert read(reader(dialect, ["f"], opened=True), f"hm</think>{sample}").reasoning == "hm"
    assert read(reader(dialect, ["f"], opened=False), sample).calls
    assert read(reader(None, ["f"]), sample) == Reading(sample, "", [])


@pytest.mark.parametrize("name", TOOL_PARSERS[2:])
def test_an_answer_that_is_held_to_calls_has_no_content(name: str) -> None:
    dialect = tool_dialect(name, None)
    sample = SAMPLES[name]
    for cut in range(len(sample) + 1):
        said = read(reader(dialect, ["f"], calls_alone=True, opened=False), "<think>hm</think>" + sample[:cut])
        assert (said.content, said.reasoning) == ("", "hm")
    assert said.calls == [("f", "{}")] * 2


def test_calls_are_read_by_default_as_they_are_forced_by_default() -> None:
    assert WITHOUT_DIALECT.name == "hermes"
    assert WITHOUT_DIALECT.visible == {"<tool_call>", "</tool_call>"}
