import json
from typing import Any

import pytest

from api_server.parsing.forced import named_tokens, tool_grammar
from api_server.parsing.parameters import Function
from api_server.parsing.select import WITHOUT_DIALECT, reader, tool_dialect
from protocol.sampling import MAX_GRAMMAR_SIZE
from tests.api_server.parsing.grammars import vocabulary
from tests.api_server.parsing.reading import read

TAGS = ("<tool_call>", "</tool_call>")
DIALECTS = ("hermes", "llama3_json", "pythonic", None)
WEATHER = Function(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 9, "description": '} "/*#'},
            "days": {"type": "integer", "minimum": 1, "maximum": 99},
            "unit": {"enum": ["°C", '"F"\\', "\U0001f600"]},
            "rain": {"type": "boolean"},
            "at": {"$ref": "#/$defs/place"},
        },
        "required": ["days", "at"],
        "$defs": {
            "place": {
                "type": "object",
                "properties": {
                    "x": {"type": "number"},
                    "next": {"type": "array", "maxItems": 2, "items": {"type": "null"}},
                },
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    strict=True,
)
TIME = Function("get_time")
OPTIONAL = Function("get", {"properties": {"a": {"type": "integer"}, "b": True, "c": {"type": "boolean"}}})
ODD = Function("odd-name_1", {"type": "object", "properties": {"a-b": {"type": "integer"}}, "required": ["a-b"]})
ALL = (WEATHER, TIME, OPTIONAL, ODD)


def check(name: str, arguments: dict[str, Any]) -> None:
    """What the schemas above say."""
    match name:
        case "get_weather":
            assert {"days", "at"} <= arguments.keys() <= {"city", "days", "unit", "rain", "at"}
            assert len(arguments.get("city", "")) <= 9
            assert 1 <= arguments["days"] <= 99
            assert arguments.get("unit", "°C") in ("°C", '"F"\\', "\U0001f600")
            assert isinstance(arguments.get("rain", True), bool)
            assert {"x"} <= arguments["at"].keys() <= {"x", "next"}
            assert isinstance(arguments["at"]["x"], int | float)
            assert arguments["at"].get("next", []) in ([], [None], [None, None])
        case "get_time":
            assert arguments == {}
        case "get":
            assert arguments.keys() <= {"a", "b", "c"}
            assert isinstance(arguments.get("a", 0), int)
            assert isinstance(arguments.get("c", True), bool)
        case _:
            assert name == "odd-name_1"
            assert arguments.keys() == {"a-b"}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tags", [(), TAGS])
def test_what_is_forced_can_be_read(dialect: str | None, tags: tuple[str, ...]) -> None:
    words = vocabulary(*tags)
    grammar = tool_grammar(ALL, dialect, parallel=True, special=words.added)
    seen: set[str] = set()
    most = 0
    for seed in range(60):
        text = words.sentence(grammar, seed)
        if text is None:
            continue
        spoken = WITHOUT_DIALECT if dialect is None else tool_dialect(dialect, None)
        reading = read(reader(spoken, [function.name for function in ALL]), *text)
        assert (reading.content, reading.reasoning) == ("", "")
        assert reading.calls
        for name, arguments in reading.calls:
            check(name, json.loads(arguments))
            seen.add(name)
        most = max(most, len(reading.calls))
    assert seen == {function.name for function in ALL}
    assert most > 1


CALLS = {
    "hermes": ('<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>', "\n"),
    None: ('<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>', "\n"),
    "llama3_json": ('{"name": "get", "parameters": {"a": 1}}', "; "),
    "pythonic": ("get(a=1)", ", "),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_one_call_or_several(dialect: str | None) -> None:
    words = vocabulary()
    call, separator = CALLS[dialect]
    one, two = call, call + separator + call
    if dialect == "pythonic":
        one, two = f"[{one}]", f"[{two}]"
    for parallel in (False, True):
        grammar = tool_grammar([OPTIONAL, TIME], dialect, parallel=parallel)
        assert words.accepts(grammar, one)
        assert words.accepts(grammar, two) is parallel
        assert not words.accepts(grammar, "")
        assert not words.begins(grammar, "I think")
        assert not words.begins(grammar, one.replace("get", "gets"))
        assert not words.begins(grammar, one.replace("1", "x"))


def test_a_named_function_is_the_only_one() -> None:
    grammar = tool_grammar([TIME], "hermes", parallel=False)
    assert vocabulary().accepts(grammar, '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>')
    assert not vocabulary().begins(grammar, '<tool_call>\n{"name": "get"')


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("[get()]", True),
        ("[get(a=1)]", True),
        ("[get(b={}, c=True)]", True),
        ("[get(c=False)]", True),
        ("[get(c=true)]", False),
        ("[get(c=True, a=1)]", False),
        ("[get(a=1,b=2)]", False),
        ("[get(, a=1)]", False),
        ("[get(d=1)]", False),
        ('[odd-name_1(**{"a-b": 1})]', True),
        ("[odd-name_1()]", False),
    ],
)
def test_python_has_its_arguments_in_order_and_optional_ones_may_be_missing(text: str, good: bool) -> None:
    assert vocabulary().accepts(tool_grammar([OPTIONAL, ODD], "pythonic", parallel=True), text) is good


RECURSIVE = {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/properties/c"}, "c": {"type": "integer"}}}
TREE = {"$ref": "#/$defs/T", "$defs": {"T": {"properties": {"a": {"$ref": "#/$defs/T"}}, "type": "object"}}}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "parameters",
    [
        RECURSIVE,
        TREE,
        {"type": "object"},
        {"properties": {"a": {"$ref": "#/$defs/X", "$defs": {"Y": {}}}}, "$defs": {"X": {"type": "integer"}}},
        {"anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]},
        {"properties": {"a": {"oneOf": [{"minLength": 1}, {"maxLength": 3}], "format": "colour", "not": {}}}},
        {"properties": {"a": {"pattern": "^(?=a)"}}, "required": ["z"]},
        {"properties": {"a": {"const": "\n\x00/*}%json{"}}, "x-guidance": {"whitespace_pattern": "("}},
    ],
)
def test_schemas_of_every_sort_compile(dialect: str | None, parameters: dict[str, Any]) -> None:
    vocabulary().matcher(tool_grammar([Function("f", parameters), TIME], dialect, parallel=True))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_a_strict_function_asks_is_enforced_or_refused(dialect: str | None) -> None:
    function = Function("f", {"properties": {"a": {"type": "string", "format": "colour"}}}, strict=True)
    assert "colour" in vocabulary().error(tool_grammar([function], dialect, parallel=False))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [1]},
        {"properties": {"a": 5}},
        {"properties": {"a": {}}, "required": [{}]},
        {"properties": {"a": {}}, "required": 5},
        {"properties": {"a": {}}, "additionalProperties": 5},
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_schema_that_is_none_is_for_the_compiler_to_refuse(dialect: str | None, schema: dict[str, Any]) -> None:
    assert vocabulary().error(tool_grammar([Function("f", schema)], dialect, parallel=False))


def test_arguments_are_written_on_one_line() -> None:
    grammar = tool_grammar([OPTIONAL], "llama3_json", parallel=False)
    assert vocabulary().accepts(grammar, '{"name": "get", "parameters": {"a":1,"b":[1, 2]}}')
    assert not vocabulary().begins(grammar, '{"name": "get", "parameters": { ')
    assert not vocabulary().begins(grammar, '{"name": "get", "parameters": {"a":  ')


def test_a_tag_that_is_a_token_is_forced_as_a_token() -> None:
    words = vocabulary(*TAGS)
    grammar = tool_grammar([TIME], "hermes", parallel=False, special=words.added)
    text = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    assert words.accepts(grammar, text)
    assert not words.matcher(grammar).try_consume_tokens(vocabulary().tokenizer.encode(text).ids)
    assert "unknown special token" in vocabulary().error(grammar)


def test_tokens_that_look_like_tags_are_named_even_if_they_are_not_special() -> None:
    added = [("<tool_call>", False), ("[X]", False), ("[Y]", True), ("<|im_end|>", True)]
    assert named_tokens(added) == {"<tool_call>", "[Y]", "<|im_end|>"}


def test_a_large_set_of_tools_fits() -> None:
    schema = {f"p{i}": {"type": "string", "description": "what it is for " * 100} for i in range(8)}
    functions = [Function(f"tool_{i}", {"type": "object", "properties": schema}) for i in range(64)]
    grammar = tool_grammar(functions, "hermes", parallel=True)
    assert len(grammar.text) < MAX_GRAMMAR_SIZE
    assert vocabulary().accepts(
        grammar, '<tool_call>\n{"name": "tool_63", "arguments": {"p0": "", "p7": "x"}}\n</tool_call>'
    )


def test_there_has_to_be_something_to_call() -> None:
    with pytest.raises(ValueError, match="no function"):
        tool_grammar([], "hermes", parallel=False)
    with pytest.raises(ValueError, match="xml is no dialect"):
        tool_grammar([TIME], "xml", parallel=False)
