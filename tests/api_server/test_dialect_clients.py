"""The clients' own SDKs against a real frontend, and a model that thinks, talks and calls by heart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from api_server.routes import API
from engine_core.request import Request
from tests.api_server.live import LiveServer
from tests.api_server.render.answers import END, FULL, encode
from tests.api_server.vocabularies import TEMPLATE, byte_level, card
from tests.fakes import MadeUpDevice, MadeUpEngine

SPEAKS = TEMPLATE + '{# thinks in <think> and </think>, calls in <tool_call>: {"name": ..., "arguments": ...} #}'
THOUGHT, TEXT, REST = "Two and two.", "Let me see. 漢字 🎉\n", " Done."
ADD = {"a": 1, "b": [2, 3]}
TOKENS = [*encode(FULL), END]
TOOL = {"type": "object", "properties": {}}


def by_heart(request: Request) -> int:
    return TOKENS[request.out_len]


def plain(value: Any) -> Any:
    """Without what is each response's own, and without what the client adds."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    own = {"id", "call_id", "parsed", "parsed_arguments"}
    return {name: plain(member) for name, member in value.items() if name not in own}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    endpoint = f"ipc://{Path(tmp_path_factory.mktemp('engine'))}/e.sock"
    model = card(byte_level(), chat_template=SPEAKS, max_model_len=1024)
    with (
        MadeUpEngine(endpoint, device=MadeUpDevice(by_heart), card=model),
        LiveServer(API, engine=endpoint) as running,
    ):
        yield running


def test_openais_client_reads_every_item(server: LiveServer) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "input": "hi",
        "tools": [{"type": "function", "name": name, "parameters": TOOL, "strict": False} for name in ("add", "stop")],
    }
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="unused", max_retries=0) as client:
        whole = client.responses.create(**asked)
        with client.responses.stream(**asked) as stream:
            arguments = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
            final = stream.get_final_response()
    assert whole.status == "completed"
    thought, text, add, stop, rest = whole.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == THOUGHT
    assert text.type == rest.type == "message"
    assert whole.output_text == TEXT + REST
    assert add.type == stop.type == "function_call"
    assert (add.name, json.loads(add.arguments), stop.name, stop.arguments) == ("add", ADD, "stop", "{}")
    assert "".join(arguments) == add.arguments + stop.arguments
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    assert [plain(item.to_dict()) for item in final.output] == [plain(item.to_dict()) for item in whole.output]
    assert final.output_text == whole.output_text
    assert final.usage is not None
    assert final.usage.output_tokens_details == whole.usage.output_tokens_details


def test_anthropics_client_reads_every_block(server: LiveServer) -> None:
    anthropic = pytest.importorskip("anthropic")
    asked: dict[str, Any] = {
        "model": "tiny",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": name, "input_schema": TOOL} for name in ("add", "stop")],
    }
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", api_key="unused", max_retries=0) as client:
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        turns = [*asked["messages"], final.to_param()]
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "4"}
            for block in final.content
            if block.type == "tool_use"
        ]
        again = client.messages.create(**{**asked, "messages": [*turns, {"role": "user", "content": results}]})
    assert whole.stop_reason == final.stop_reason == again.stop_reason == "tool_use"
    for message in (whole, final):
        thought, text, add, stop, rest = message.content
        assert (thought.thinking, text.text, rest.text) == (THOUGHT, TEXT, REST)
        assert (add.name, add.input, stop.name, stop.input) == ("add", ADD, "stop", {})
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens > whole.usage.input_tokens
