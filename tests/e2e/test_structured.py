"""Answers in a form that the request asks for: enforced while the built-in model writes."""

import json
import re
from enum import Enum
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from tests.api_server.test_render import text_of
from tests.e2e.server import Server

QUESTION: list[Any] = [{"role": "user", "content": "Tell me of a person."}]
MODEL = "tokenwire-tiny"
MAX_TOKENS = 400


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Pet(BaseModel):
    name: str = Field(max_length=12)
    colour: Colour


class Person(BaseModel):
    age: int = Field(ge=0, le=120)
    likes: list[Colour] = Field(max_length=3)
    pet: Pet | None


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def test_the_client_parses_a_model_of_its_own(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Person, max_tokens=MAX_TOKENS, seed=1, n=3
    )
    for choice in parsed.choices:
        assert isinstance(choice.message.parsed, Person)
        assert choice.finish_reason == "stop"


def test_the_clients_stream_helper_parses_as_it_comes(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Person, max_tokens=MAX_TOKENS, seed=5
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)
    deltas = [event for event in events if event.type == "content.delta"]
    assert len(deltas) > 5
    assert "".join(event.delta for event in deltas) == final.choices[0].message.content


def test_some_json_object(server: Server) -> None:
    body = {"messages": QUESTION, "response_format": {"type": "json_object"}, "max_tokens": 60, "seed": 1, "n": 4}
    for choice in server.post("/v1/chat/completions", body).json()["choices"]:
        text = choice["message"]["content"]
        assert text.startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(text), dict)


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"regex": r"[a-f]{3}-\d{2,4}"}, r"[a-f]{3}-\d{2,4}"),
    ({"choice": ["Paris", "Łódź", "San José 🎉"]}, "Paris|Łódź|San José 🎉"),
    ({"grammar": 'start: greeting "!"\ngreeting: "Hello" | "Hi" (" there")*'}, r"(Hello|Hi( there)*)!"),
    ({"json": {"enum": ["a", 1, None]}}, '"a"|1|null'),
    ({"json": '{"type": "integer", "minimum": 10, "maximum": 99}'}, r"\d\d"),
]


@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_every_form_is_kept_to(server: Server, form: dict[str, Any], pattern: str) -> None:
    body = {"prompt": ["One", "Once upon a time"], "n": 3, "structured_outputs": form, "max_tokens": 100, "seed": 8}
    for choice in server.post("/v1/completions", body).json()["choices"]:
        assert choice["finish_reason"] == "stop"
        assert re.fullmatch(pattern, choice["text"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/generate", "/v1/completions/stream"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_route_keeps_to_a_form(server: Server, path: str, stream: bool) -> None:
    prompt = {"messages": QUESTION} if "chat" in path else {"prompt": "Once upon a time"}
    choice = {"structured_outputs": {"choice": ["Paris", "Łódź", "San José 🎉"]}}
    answer = server.post(path, {**prompt, **choice, "max_tokens": 30, "stream": stream})
    assert text_of(answer.events() if stream else [answer.json()]) in ("Paris", "Łódź", "San José 🎉")


def test_a_streamed_form_is_the_same_one(server: Server) -> None:
    body = {"prompt": "One:", "structured_outputs": {"regex": "[a-z]{5,9}"}, "seed": 7, "n": 3, "max_tokens": 40}
    whole = server.post("/v1/completions", body).json()
    texts = [""] * 3
    for event in server.post("/v1/completions", {**body, "stream": True}).events():
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert all(re.fullmatch("[a-z]{5,9}", text) for text in texts)


def test_the_older_names(server: Server) -> None:
    for fields, pattern in (({"guided_choice": ["yes", "no"]}, "yes|no"), ({"guided_regex": r"\d{3}"}, r"\d{3}")):
        body = {"messages": QUESTION, **fields, "max_tokens": 20}
        assert re.fullmatch(
            pattern, server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        )
    events = server.get("/v1/completions/stream?prompt=Hello&guided_regex=%5Cd%7B3%7D&max_tokens=20").data()
    text = "".join(json.loads(event)["token"] for event in events if event != "[DONE]")
    assert re.fullmatch(r"\d{3}", text)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nowhere"}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"type": "nonsense"}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "x" * 65_537}}, "structured_outputs"),
        ({"guided_regex": "["}, "guided_regex"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": {"pattern": "(?=a)"}},
                }
            },
            "response_format",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
    ],
)
def test_refusals_name_the_field(server: Server, fields: dict[str, Any], param: str) -> None:
    epoch = server.engine()["epoch"]
    for stream in (False, True):
        answer = server.post("/v1/chat/completions", {"messages": QUESTION, **fields, "stream": stream})
        assert answer.status == 400
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert server.engine()["epoch"] == epoch
