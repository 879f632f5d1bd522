import json
from typing import Any

import pytest

from api_server.errors import ApiError
from api_server.grammar import grammar_of
from api_server.schema.decode import decode
from api_server.schema.requests import CompletionRequest
from protocol.sampling import Grammar, GrammarKind

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def found(**fields: object) -> Grammar | None:
    return grammar_of(decode(json.dumps({"prompt": "hi", **fields}).encode(), CompletionRequest))


def grammar(**fields: object) -> Grammar:
    grammar = found(**fields)
    assert grammar is not None
    return grammar


def refused(**fields: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        found(**fields)
    assert caught.value.status == 400
    return caught.value


def json_schema(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, **more}}


def test_most_requests_take_any_answer() -> None:
    assert found() is None
    assert found(response_format=None, structured_outputs=None, guided_json=None) is None
    assert found(response_format={"type": "text"}) is None


def test_response_formats() -> None:
    some = grammar(response_format={"type": "json_object"})
    assert (some.kind, json.loads(some.text), some.param) == (
        GrammarKind.JSON_SCHEMA,
        {"type": "object"},
        "response_format",
    )
    strict = grammar(response_format=json_schema(strict=True, description="Somebody."))
    assert (strict.kind, json.loads(strict.text)) == (GrammarKind.JSON_SCHEMA, SCHEMA)
    unnamed = grammar(response_format=json_schema(strict=True, schema=None))
    assert (unnamed.kind, json.loads(unnamed.text)) == (GrammarKind.JSON_SCHEMA, {"type": "object"})


def test_a_schema_that_is_not_strict_is_enforced_as_far_as_it_can_be() -> None:
    for more in ({}, {"strict": False}, {"strict": None}):
        assert json.loads(grammar(response_format=json_schema(**more)).text) == {
            **SCHEMA,
            "x-guidance": {"lenient": True},
        }


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("json", SCHEMA, Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA, separators=(",", ":")))),
        ("json", json.dumps(SCHEMA), Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA, separators=(",", ":")))),
        ("regex", r"\d+", Grammar(GrammarKind.REGEX, r"\d+")),
        ("choice", ["ja", "né"], Grammar(GrammarKind.CHOICE, '["ja","né"]')),
        ("grammar", 'start: "a"', Grammar(GrammarKind.LARK, 'start: "a"')),
    ],
)
def test_structured_outputs_and_their_older_names(kind: str, value: object, expected: Grammar) -> None:
    assert grammar(structured_outputs={kind: value}) == expected
    older = grammar(**{f"guided_{kind}": value})
    assert (older.kind, older.text, older.param) == (expected.kind, expected.text, f"guided_{kind}")


def test_any_json_object_as_a_structured_output() -> None:
    assert json.loads(grammar(structured_outputs={"json_object": True}).text) == {"type": "object"}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"json_object": False},
        {"regex": "a", "choice": ["a"]},
        {"regex": "a", "json_object": True},
        {"json": "nonsense"},
        {"json": "[]"},
        {"json": '{"a":' * 40 + "1" + "}" * 40},
        {"json": "[" * 60_000},
        {"regex": "a", "whitespace_pattern": " "},
        {"json": {}, "disable_additional_properties": True},
        {"structural_tag": "{}"},
    ],
)
def test_structured_outputs_are_of_one_kind_that_is_served(value: dict[str, object]) -> None:
    assert refused(structured_outputs=value).param == "structured_outputs"


def test_options_of_structured_outputs_that_change_nothing() -> None:
    options = {"disable_any_whitespace": True, "disable_additional_properties": False, "disable_fallback": True}
    assert grammar(structured_outputs={"regex": "a", **options}).text == "a"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
    ],
)
def test_an_answer_has_one_form(fields: dict[str, object], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert "exclude each other" in error.message


def test_a_text_format_goes_with_any_other() -> None:
    assert grammar(response_format={"type": "text"}, structured_outputs={"regex": "a"}).text == "a"
