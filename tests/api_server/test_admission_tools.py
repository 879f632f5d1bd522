"""Tools, formats and thoughts, from the request to the job."""

import json
from typing import Any

import pytest

from api_server.admission import Admission
from api_server.job import Job
from api_server.schema.requests import ChatRequest, TokenizeRequest
from protocol.messages import Limits
from protocol.sampling import GrammarKind
from tests.api_server.parsing.reading import read
from tests.api_server.templates import LLAMA, QWEN, THINKING
from tests.api_server.test_admission import MESSAGES, chat, completion, generate, refused, request, run, stream
from tests.api_server.vocabularies import byte_level, card

LARGE = Limits(200_000, 1, 1, 0)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}, "strict": True}}

LARGE_SCHEMA = {"name": "x", "schema": {"a": "x" * 65_536}}


def admission(template: str, *special: str, **parsers: str) -> Admission:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(list(special))
    return Admission(card(tokenizer, chat_template=template, max_model_len=100_000), LARGE, **parsers)


QWEN_ADMISSION = admission(QWEN)
PLAIN_ADMISSION = admission("{% for m in messages %}{{ m.content }}{% endfor %}")


def prompt_of(work: Job) -> str:
    return QWEN_ADMISSION.decode(work.submission.prompts[0])


def grammar_text(work: Job) -> str:
    grammar = work.submission.sampling.grammar
    assert grammar is not None
    return grammar.frame + grammar.text


def told(work: Job, text: str) -> tuple[str, str, list[tuple[str, str]]]:
    assert work.reader is not None
    reading = read(work.reader(), *text)
    return reading.content, reading.reasoning, reading.calls


# ------------------------------------------------------------------------------------------------ tools


def test_the_model_is_told_of_its_tools_and_read_for_calls() -> None:
    work = chat(QWEN_ADMISSION, tools=TOOLS)
    assert '"get_weather"' in prompt_of(work)
    assert work.submission.sampling.grammar is None
    assert told(work, f"Hm.{CALL}")[2] == [("get_weather", '{"city": "Paris"}')]
    assert (work.named_call, work.legacy_calls) == (False, False)


def test_tools_that_may_not_be_called_are_not_there() -> None:
    work = chat(QWEN_ADMISSION, tools=TOOLS, tool_choice="none")
    assert prompt_of(work) == prompt_of(chat(QWEN_ADMISSION))
    assert told(work, CALL) == (CALL, "", [])


@pytest.mark.parametrize(
    ("fields", "named", "legacy"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, False, False),
        ({"tools": TOOLS, "tool_choice": NAMED}, True, False),
        ({"functions": [TOOLS[0]["function"]], "function_call": {"name": "get_weather"}}, True, True),
    ],
)
def test_a_forced_call_has_a_grammar(fields: dict[str, Any], named: bool, legacy: bool) -> None:
    for who in (QWEN_ADMISSION, PLAIN_ADMISSION):
        work = chat(who, **fields)
        assert '{\\"name\\": \\"get_weather\\"' in grammar_text(work)
        assert (work.named_call, work.legacy_calls) == (named, legacy)
        assert told(work, CALL)[2] == [("get_weather", '{"city": "Paris"}')]


def test_a_model_that_knows_no_tools_is_asked_as_ever() -> None:
    work, plain = chat(PLAIN_ADMISSION, tools=TOOLS), chat(PLAIN_ADMISSION)
    assert work.submission.prompts == plain.submission.prompts
    assert work.reader is plain.reader is None


def test_a_parser_that_is_named_counts_more_than_the_template() -> None:
    silent = chat(admission(QWEN, tool_parser="none", reasoning_parser="none"), tools=TOOLS)
    assert '"get_weather"' in prompt_of(silent)
    assert silent.reader is None
    hermes = chat(admission("{{ messages[0].content }}", tool_parser="hermes"), tools=TOOLS)
    assert told(hermes, CALL)[2]


def test_special_tokens_are_shown_to_the_reader_that_needs_them() -> None:
    llama = admission(LLAMA, "<|python_tag|>", "<|eot_id|>")
    [tag] = [token for token, text, _ in llama.vocabulary.added if text == "<|python_tag|>"]
    assert chat(llama, tools=TOOLS).visible == {tag}
    assert chat(llama).visible == frozenset()
    for skip, shown in ((None, ""), (False, "<|python_tag|>")):
        assert told(chat(llama, tools=TOOLS, skip_special_tokens=skip), "<|python_tag|>")[0] == shown


def test_tokenize_counts_tools() -> None:
    body = {"messages": MESSAGES, "tools": TOOLS}
    tokens = run(QWEN_ADMISSION.tokenize(request({**body, "add_generation_prompt": True}, TokenizeRequest)))
    work = chat(QWEN_ADMISSION, tools=TOOLS)
    assert tokens == work.submission.prompts[0]
    assert run(QWEN_ADMISSION.prompt_of(request(body, ChatRequest))) == tokens


def test_many_tools_are_admitted_off_the_loop_alike() -> None:
    many = [
        {"type": "function", "function": {"name": f"f{i}", "description": "x" * 400, "parameters": PARAMETERS}}
        for i in range(128)
    ]
    work = chat(QWEN_ADMISSION, tools=many, tool_choice="required")
    assert all(f'"f{i}"' in prompt_of(work) for i in range(128))
    assert "x" * 400 not in grammar_text(work)


# ------------------------------------------------------------------------------------------------ formats


def test_a_format_reaches_the_engine_from_every_route() -> None:
    for admit in (chat, completion, generate, stream):
        grammar = admit(response_format=SCHEMA).submission.sampling.grammar  # type: ignore[operator]
        assert (grammar.kind, json.loads(grammar.text)) == (GrammarKind.JSON_SCHEMA, {"type": "string"})
        grammar = admit(structured_outputs={"regex": "a+"}).submission.sampling.grammar  # type: ignore[operator]
        assert (grammar.kind, grammar.text, grammar.param) == (GrammarKind.REGEX, "a+", "structured_outputs")
        both = refused(admit, response_format=SCHEMA, guided_regex="a")
        assert both.param == "guided_regex"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": LARGE_SCHEMA}}, "response_format"),
        ({"structured_outputs": {"json": {"a": "x" * 65_536}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "é" * 40_000}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["x" * 40_000, "y" * 40_000]}}, "structured_outputs"),
        ({"guided_grammar": "é" * 40_000}, "guided_grammar"),
    ],
)
def test_no_grammar_has_more_than_64_kib(fields: dict[str, Any], param: str) -> None:
    error = refused(completion, **fields)
    assert (error.status, error.param) == (400, param)


def test_calls_that_are_forced_are_the_whole_answer() -> None:
    forced = chat(QWEN_ADMISSION, tools=TOOLS, tool_choice="required")
    formatted = chat(QWEN_ADMISSION, tools=TOOLS, tool_choice="required", response_format=SCHEMA)
    assert grammar_text(formatted) == grammar_text(forced)
    error = refused(chat, tools=TOOLS, tool_choice=NAMED, structured_outputs={"regex": "a"})
    assert error.param == "structured_outputs"


def test_what_cannot_be_forced_is_refused_by_name() -> None:
    bad = [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]
    assert refused(chat, tools=bad, tool_choice="required").param == "tools"


# ------------------------------------------------------------------------------------------------ thoughts


def test_thoughts_are_read_apart() -> None:
    work = chat(admission(THINKING))
    assert told(work, "Hm.\n</think>\n\nHello") == ("Hello", "Hm.", [])
    assert told(chat(QWEN_ADMISSION), "<think>Hm.</think>Hello") == ("Hello", "Hm.", [])


def test_a_message_that_goes_on_goes_on_where_it_was() -> None:
    def resumed(last: str) -> Job:
        messages = [*MESSAGES, {"role": "assistant", "content": last}]
        return chat(QWEN_ADMISSION, messages=messages, continue_final_message=True)

    assert told(resumed("<think>Hm"), ". So</think>Yes") == ("Yes", ". So", [])
    assert resumed("<think>Hm.</think>Ye").reader is None


def test_a_format_is_of_the_answer_and_not_of_the_thought() -> None:
    thinking = chat(QWEN_ADMISSION, response_format=SCHEMA)
    assert "think" in grammar_text(thinking)
    switched_off = chat(QWEN_ADMISSION, response_format=SCHEMA, chat_template_kwargs={"enable_thinking": False})
    assert json.loads(grammar_text(switched_off)) == {"type": "string"}
    raw = completion(QWEN_ADMISSION, response_format=SCHEMA)
    assert json.loads(grammar_text(raw)) == {"type": "string"}
