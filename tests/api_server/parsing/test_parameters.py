import json
from typing import Any

import pytest

from api_server.parsing.parameters import MAX_SCHEMA_DEPTH, Function, enforceable, to_text

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize("parameters", [None, {}, NOTHING, {"type": "object", "properties": {}}])
def test_no_parameters_is_an_object_without_members(parameters: dict[str, Any] | None) -> None:
    assert enforceable(Function("f", parameters)) == NOTHING


def test_what_says_nothing_about_the_arguments_is_left_out_and_properties_of_that_name_are_not() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "long",
        "properties": {
            "description": {"description": "long", "type": "string", "default": "x"},
            "list": {"items": {"anyOf": [{"title": "T", "type": "integer"}, True]}},
            "pair": {"prefixItems": [{"title": "T"}], "items": False},
            "one": {"const": {"title": "kept"}},
        },
    }
    assert enforceable(Function("f", schema)) == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "description": {"type": "string"},
            "list": {"items": {"anyOf": [{"type": "integer"}, True]}},
            "pair": {"prefixItems": [{}], "items": False},
            "one": {"const": {"title": "kept"}},
        },
    }


def test_other_arguments_are_let_in_where_the_schema_says_so() -> None:
    assert "additionalProperties" not in enforceable(Function("f", {"type": "object"}))
    schema = {"type": ["object", "null"], "properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    assert enforceable(Function("f", schema)) == {**schema, "type": "object"}


def test_a_root_that_is_a_reference_stays_alone() -> None:
    schema = {"$ref": "#/$defs/R", "$defs": {"R": {"type": "object"}}}
    assert enforceable(Function("f", schema)) == schema


def test_patterns_that_no_automaton_knows_are_advice_unless_the_function_is_strict() -> None:
    schema = {"type": "object", "properties": {"a": {"pattern": "^(?!x)"}, "b": {"pattern": "^x"}}}
    assert enforceable(Function("f", schema))["properties"] == {"a": {}, "b": {"pattern": "^x"}}
    assert enforceable(Function("f", schema, strict=True))["properties"] == schema["properties"]


@pytest.mark.parametrize("kind", ["string", ["array", "null"], 3])
def test_arguments_are_an_object(kind: object) -> None:
    with pytest.raises(ValueError, match="parameters of function f are of type"):
        enforceable(Function("f", {"type": kind}))


def test_depth_is_bounded() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(MAX_SCHEMA_DEPTH - 1):
        schema = {"type": "object", "properties": {"a": schema}}
    enforceable(Function("f", schema))
    with pytest.raises(ValueError, match="deeper than 64"):
        enforceable(Function("f", {"type": "object", "properties": {"a": schema}}))
    constant: list[Any] = []
    for _ in range(100_000):
        constant = [constant]
    with pytest.raises(ValueError, match="too deep"):
        to_text({"const": constant}, strict=True)


def test_only_a_strict_schema_is_binding() -> None:
    options = {
        strict: json.loads(to_text({"x-guidance": "ours"}, strict=strict))["x-guidance"] for strict in (True, False)
    }
    assert "lenient" not in options[True]
    assert options[False] == {**options[True], "lenient": True}
