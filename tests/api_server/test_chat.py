import json

import msgspec
import pytest

from api_server.chat import ChatTemplate, text_of, weight
from api_server.errors import ApiError
from api_server.schema.messages import Message, Scalars

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def messages(*items: dict[str, object]) -> list[Message]:
    return msgspec.convert(list(items), list[Message])


def render(
    source: str,
    *items: dict[str, object],
    kwargs: Scalars | None = None,
    generate: bool = True,
    resume: bool = False,
    max_chars: int = 10_000,
) -> str:
    template = ChatTemplate(source, SPECIAL, max_chars)
    return template.render(messages(*items), kwargs or {}, generate=generate, resume=resume)


def refused(source: str, *items: dict[str, object], **options: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        render(source, *items, **options)  # type: ignore[arg-type]
    assert caught.value.status == 400
    return caught.value


USER = {"role": "user", "content": "hi"}


def test_messages_special_tokens_and_the_opening_of_an_answer() -> None:
    system = {"role": "system", "content": "be brief"}
    assert render(PLAIN, system, USER) == "<s>[system]be brief</s>[user]hi</s>[assistant]"
    assert render(PLAIN, USER, generate=False) == "<s>[user]hi</s>"


def test_text_parts_are_joined_by_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render(PLAIN, {"role": "user", "content": parts}) == "<s>[user]one\ntwo</s>[assistant]"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "anything"])
def test_parts_that_are_no_text_are_refused_by_type(kind: str) -> None:
    error = refused(PLAIN, USER, {"role": "user", "content": [{"type": kind, kind: {"url": "http://x/y.png"}}]})
    assert error.param == "messages"
    assert kind in error.message
    assert "messages[1]" in error.message


def test_a_text_part_needs_text() -> None:
    assert "lacks its `text`" in refused(PLAIN, {"role": "user", "content": [{"type": "text"}]}).message


def test_content_may_be_missing_only_beside_tool_calls() -> None:
    assert "`content` is missing" in refused(PLAIN, {"role": "user"}).message
    assert "`content` is missing" in refused(PLAIN, {"role": "assistant", "content": None}).message
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    source = "{% for m in messages %}{{ m.content is none }}{{ m.tool_calls[0].function.arguments.a[0] }}{% endfor %}"
    assert render(source, {"role": "assistant", "content": None, "tool_calls": [call]}) == "True1"


def test_an_answer_that_ended_in_its_thoughts_can_be_sent_back_as_it_came() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}/{{ m.content + '.' }}{% endfor %}"
    assert render(source, {"role": "assistant", "content": None, "reasoning_content": "hm"}) == "hm/."


def test_a_refusal_is_what_was_said() -> None:
    assert "[assistant]no</s>" in render(PLAIN, {"role": "assistant", "content": None, "refusal": "no"}, USER)
    assert "[assistant]no</s>" in render(PLAIN, {"role": "assistant", "content": "", "refusal": "no"}, USER)
    assert "[assistant]yes</s>" in render(PLAIN, {"role": "assistant", "content": "yes", "refusal": None}, USER)


def test_the_older_spelling_of_a_call_and_of_its_result() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": [1]}'}}
    result = {"role": "function", "name": "f", "content": "4"}
    source = (
        "{{ messages[0].tool_calls[0].function.name }}{{ messages[0].tool_calls[0].function.arguments.a[0] }}"
        "{{ messages[1].role }}{{ messages[1].name }}"
    )
    assert render(source, call, result) == "f1toolf"


def test_all_text_of_a_conversation_has_its_weight() -> None:
    call = {"function": {"name": "f", "arguments": '"' + "x" * 1000 + '"'}}
    texts: list[dict[str, object]] = [
        {"role": "user", "content": "x" * 1000},
        {"role": "user", "content": [{"type": "text", "text": "x" * 1000}]},
        {"role": "assistant", "refusal": "x" * 1000},
        {"role": "assistant", "content": "", "reasoning_content": "x" * 1000},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "function_call": call["function"]},
    ]
    for text in texts:
        assert 1000 < weight(messages(text), 10_000) < 1300
    assert weight(messages(*texts), 10_000) == sum(weight(messages(text), 10_000) for text in texts)
    assert 2500 < weight(messages(*texts), 2500) < 4000  # more than enough, and no further


def test_arguments_of_calls_must_be_json() -> None:
    call = {"function": {"name": "f", "arguments": "{nonsense"}}
    assert "no JSON" in refused(PLAIN, {"role": "assistant", "tool_calls": [call]}).message


def test_developer_is_system_for_a_template_that_does_not_know_it() -> None:
    developer = {"role": "developer", "content": "x"}
    assert "[system]x" in render(PLAIN, developer)
    assert "[developer]x" in render(PLAIN + "{# developer #}", developer)


def test_continuing_the_last_message_cuts_what_the_template_puts_behind_it() -> None:
    last = {"role": "assistant", "content": "Once upon a"}
    assert render(PLAIN, USER, last, generate=False, resume=True) == "<s>[user]hi</s>[assistant]Once upon a"


def test_continuing_keeps_a_trailing_space_unless_the_template_trims() -> None:
    last = {"role": "assistant", "content": "Once "}
    trims = PLAIN.replace("m['content']", "m['content'] | trim")
    assert render(PLAIN, last, generate=False, resume=True).endswith("Once ")
    assert render(trims, last, generate=False, resume=True).endswith("Once")


def test_continuing_an_empty_message_and_one_that_repeats() -> None:
    assert render(PLAIN, USER, {"role": "assistant", "content": ""}, generate=False, resume=True).endswith(
        "[assistant]"
    )
    assert render(PLAIN, USER, USER, generate=False, resume=True) == "<s>[user]hi</s>[user]hi"


def test_a_message_that_the_template_leaves_out_cannot_be_continued() -> None:
    assert "continued" in refused("nothing", USER, generate=False, resume=True).message


def test_what_templates_are_written_for() -> None:
    source = (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        " {{ {'a': '<é>', 'b': [1]} | tojson }} {{ {'a': 1} | tojson(indent=1) }}"
        " {% generation %}{{ messages[0].content }}{% endgeneration %}"
        " {{ strftime_now('%Y') | length }} {{ tools is none }} {{ documents is none }}"
    )
    assert render(source, USER) == '02 {"a": "<é>", "b": [1]} {\n "a": 1\n} hi 4 True True'


def test_blocks_leave_no_blank_lines() -> None:
    assert render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}\n", USER, USER) == "x\nx\n"


def test_kwargs_are_variables() -> None:
    source = "{% if enable_thinking %}think{% else %}answer{% endif %}"
    assert render(source, USER, kwargs={"enable_thinking": False}) == "answer"
    assert render(source, USER, kwargs={"enable_thinking": True}) == "think"


@pytest.mark.parametrize("name", ["messages", "bos_token", "add_generation_prompt", "chat_template", "tools"])
def test_kwargs_do_not_reach_the_servers_own_variables(name: str) -> None:
    assert refused(PLAIN, USER, kwargs={name: "x"}).param == "chat_template_kwargs"


def test_a_template_may_refuse() -> None:
    error = refused("{{ raise_exception('roles must alternate') }}", USER)
    assert "roles must alternate" in error.message
    assert error.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[5].content }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ undefined.attribute }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ range(10000000) | list }}",
        "{{ messages[0].content | int + none }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_failing_or_forbidden_expression_is_the_requests_problem(source: str) -> None:
    refused(source, USER)


def test_the_prompt_has_an_end() -> None:
    source = "{% for i in range(90000) %}{% for j in range(90000) %}xxxxxxxxxx{% endfor %}{% endfor %}"
    assert refused(source, USER).code == "context_length_exceeded"


def test_a_template_that_does_not_compile_is_known_at_once() -> None:
    with pytest.raises(ValueError, match="does not compile"):
        ChatTemplate("{% if %}", SPECIAL, 100)


def test_reasoning_names_and_tool_results_reach_the_template() -> None:
    source = "{% for m in messages %}{{ m.name }}/{{ m.tool_call_id }}/{{ m.reasoning_content }};{% endfor %}"
    tool = {"role": "tool", "content": "4", "tool_call_id": "c1"}
    user = {"role": "user", "content": "x", "name": "Ann"}
    thought = {"role": "assistant", "content": "y", "reasoning_content": "hm"}
    assert render(source, tool, user, thought) == "/c1/;Ann//;//hm;"


def test_content_is_data_not_template() -> None:
    text = "{{ 7 * 7 }}{% for x in y %}"
    assert text in render(PLAIN, {"role": "user", "content": text})
    assert json.dumps(text) in render("{{ messages[0].content | tojson }}", {"role": "user", "content": text})


def test_text_of_plain_content() -> None:
    assert text_of(Message("user", "x")) == "x"
    assert text_of(Message("user", "")) == ""
    assert text_of(Message("assistant")) is None
