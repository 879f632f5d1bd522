"""A model that thinks and calls when it wants to, seen through OpenAI's own client: the whole way, but that its tokens
are made up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk

from api_server.routes import API
from engine_core.request import Request
from tests.api_server.live import LiveServer
from tests.api_server.templates import LLAMA, QWEN
from tests.api_server.vocabularies import byte_level, card
from tests.fakes import MadeUpDevice, MadeUpEngine

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
QUESTION: list[Any] = [{"role": "user", "content": "Paris?"}]
ANSWER = """<think>
Hm: "<tool_call>" 漢字.
</think>

Let me see. 🎉
<tool_call>
{"name": "get_weather", "arguments": {"city": "Łódź"}}
</tool_call>
<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>"""
ARGUMENTS = ['{"city": "Łódź"}', '{"city": "Paris"}']
END = 1


@contextmanager
def speaking(path: Path, answer: str, template: str = QWEN, **settings: Any) -> Iterator[openai.OpenAI]:
    """A client of a model that always says the same."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|python_tag|>"])
    tokens = [*tokenizer.encode(answer, add_special_tokens=False).ids, END]

    def token_of(request: Request) -> int:
        return tokens[request.out_len]

    endpoint = f"ipc://{path}/e.sock"
    made_up = card(tokenizer, chat_template=template, max_model_len=4096)
    with (
        MadeUpEngine(endpoint, device=MadeUpDevice(token_of), card=made_up),
        LiveServer(API, engine=endpoint, **settings) as server,
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="unused") as client,
    ):
        yield client


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "tools": TOOLS, **more})


def test_a_thought_an_answer_and_calls_in_one(tmp_path: Path) -> None:
    with speaking(tmp_path, ANSWER) as client:
        whole = ask(client)
        chunks: list[ChatCompletionChunk] = list(ask(client, stream=True, stream_options={"include_usage": True}))
    [choice] = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see. 🎉\n"
    assert choice.message.reasoning_content == 'Hm: "<tool_call>" 漢字.'
    assert [call.function.arguments for call in choice.message.tool_calls] == ARGUMENTS
    assert 0 < whole.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content
    thoughts = [(delta.model_extra or {}).get("reasoning_content", "") for delta in deltas]
    assert "".join(thoughts) == choice.message.reasoning_content
    arguments = ["", ""]
    for call in [call for delta in deltas for call in delta.tool_calls or ()]:
        assert call.function is not None
        arguments[call.index] += call.function.arguments or ""
    assert arguments == ARGUMENTS
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens_details == whole.usage.completion_tokens_details


def test_without_tools_a_call_is_text(tmp_path: Path) -> None:
    with speaking(tmp_path, ANSWER) as client:
        for more in ({"tools": openai.NOT_GIVEN}, {"tool_choice": "none"}):
            [choice] = ask(client, **more).choices
            assert choice.message.content.endswith("</tool_call>")
            assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")


def test_one_call_at_a_time(tmp_path: Path) -> None:
    with speaking(tmp_path, ANSWER) as client:
        [choice] = ask(client, parallel_tool_calls=False).choices
        assert [call.function.arguments for call in choice.message.tool_calls] == ARGUMENTS[:1]


def test_an_answer_that_is_cut_within_its_thought(tmp_path: Path) -> None:
    with speaking(tmp_path, ANSWER) as client:
        [choice] = ask(client, max_tokens=12).choices
        assert (choice.message.content, choice.finish_reason) == (None, "length")
        assert choice.message.reasoning_content.startswith("Hm")


def test_a_special_token_that_marks_a_call_is_not_seen_by_the_client(tmp_path: Path) -> None:
    call = '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}'
    with speaking(tmp_path, call, LLAMA) as client:
        [choice] = ask(client).choices
        assert choice.message.content is None
        assert [call.function.arguments for call in choice.message.tool_calls] == ARGUMENTS[1:]
        [plain] = ask(client, tools=openai.NOT_GIVEN).choices
        assert plain.message.content == call.removeprefix("<|python_tag|>")
    with speaking(tmp_path, "Hello<|python_tag|> world", LLAMA) as client:
        assert ask(client).choices[0].message.content == "Hello world"


def test_the_operator_chooses_the_parsers(tmp_path: Path) -> None:
    with speaking(tmp_path, ANSWER, tool_call_parser="none", reasoning_parser="none") as client:
        [choice] = ask(client).choices
        assert choice.message.content == ANSWER
    with speaking(tmp_path, ANSWER, "{{ messages[0].content }}", tool_call_parser="hermes") as client:
        assert len(ask(client).choices[0].message.tool_calls) == 2
