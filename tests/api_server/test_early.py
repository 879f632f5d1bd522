"""Whatever is wrong with a request's parameters is told before its prompt is rendered or tokenised."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from api_server.admission import Admission
from api_server.chat import ChatTemplate
from api_server.encode import Encoder
from api_server.errors import ApiError
from api_server.schema.decode import decode
from api_server.schema.requests import ChatRequest, CompletionRequest, GenerationRequest, PlainRequest
from protocol.messages import Limits
from protocol.sampling import MAX_GRAMMAR_SIZE
from tests.api_server.vocabularies import byte_level, card

ROOM = 5_000_000
LONG = "Hello world " * 80_000
ADMISSION = Admission(card(byte_level(), max_model_len=ROOM), Limits(2 * ROOM, 1, 1, 0))
SCHEMA = {"type": "object", "description": "x" * MAX_GRAMMAR_SIZE}
TOO_LARGE = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": "other"}, "model"),
    ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
    ({"max_tokens": ROOM}, "max_tokens"),
    ({"max_tokens": 65_537}, "max_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"stop_token_ids": [5_000_000]}, "stop_token_ids"),
    ({"logit_bias": {"5000000": 1}}, "logit_bias"),
    ({"allowed_token_ids": [1, 5_000_000]}, "allowed_token_ids"),
    ({"response_format": TOO_LARGE}, "response_format"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
]
WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    *WRONG,
    ({"max_completion_tokens": ROOM}, "max_completion_tokens"),
    ({"n": 8, "max_completion_tokens": 8193}, "max_completion_tokens"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"chat_template": "x"}, "chat_template"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL]}, "tools"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
]
WRONG_COMPLETION: list[tuple[dict[str, Any], str]] = [
    *WRONG,
    ({"n": 8, "max_tokens": 8193}, "max_tokens"),
    ({"n": 8, "prompt": [LONG, *["x"] * 64]}, "n"),
    ({"max_tokens": 1100, "prompt": [LONG, *["x"] * 64]}, "max_tokens"),
    ({"suffix": "x"}, "suffix"),
]
WRONG_PLAIN = [*WRONG, ({"n": 2}, "n"), ({"echo": True}, "echo")]

CASES = [
    *(("chat", ChatRequest, fields, param) for fields, param in WRONG_CHAT),
    *(("completion", CompletionRequest, fields, param) for fields, param in WRONG_COMPLETION),
    *(("generate", PlainRequest, fields, param) for fields, param in WRONG_PLAIN),
]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the texts that were tokenised, and of the conversations that were rendered."""
    sizes: list[int] = []
    encode, render = Encoder.encode_now, ChatTemplate.render

    def encoding(self: Encoder, texts: Sequence[str], *, add_special: bool) -> Any:
        sizes.extend(map(len, texts))
        return encode(self, texts, add_special=add_special)

    def rendering(self: ChatTemplate, messages: Any, *rest: Any, **more: Any) -> str:
        sizes.append(len(messages))
        return render(self, messages, *rest, **more)

    monkeypatch.setattr(Encoder, "encode_now", encoding)
    monkeypatch.setattr(ChatTemplate, "render", rendering)
    return sizes


def ask(route: str, kind: type[GenerationRequest], fields: dict[str, Any]) -> None:
    prompt = {"messages": [{"role": "user", "content": LONG}]} if kind is ChatRequest else {"prompt": LONG}
    asyncio.run(getattr(ADMISSION, route)(decode(json.dumps({**prompt, **fields}).encode(), kind)))


@pytest.mark.parametrize(("route", "kind", "fields", "param"), CASES)
def test_a_wrong_parameter_is_told_before_the_prompt_is_looked_at(
    seen: list[int], route: str, kind: type[GenerationRequest], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        ask(route, kind, fields)
    assert caught.value.param == param
    assert seen == []


def test_what_is_right_is_looked_at_once(seen: list[int]) -> None:
    ask("completion", CompletionRequest, {"max_tokens": 65_536, "min_tokens": 65_536})
    assert seen == [len(LONG)]


@pytest.mark.parametrize(
    ("route", "kind"), [("chat", ChatRequest), ("completion", CompletionRequest), ("generate", PlainRequest)]
)
def test_a_full_queue_is_told_before_the_prompt_is_looked_at(
    seen: list[int], monkeypatch: pytest.MonkeyPatch, route: str, kind: type[GenerationRequest]
) -> None:
    monkeypatch.setattr(ADMISSION, "queue_full", lambda: True)
    with pytest.raises(ApiError) as caught:
        ask(route, kind, {})
    assert caught.value.code == "queue_full"
    assert seen == []
