"""Grammars that force calls, in llguidance's dialect of Lark: for `tool_choice` `required` or a named function.

A call is forced in the form that the model was trained to write, and its arguments by the function's schema. A tag
that is a special token of the model's has to be named as a token, for a grammar's text never matches those: it is
spelt with other tokens.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from api_server.parsing import hermes
from api_server.parsing.parameters import Function, enforceable, names_all, to_text
from protocol.sampling import Grammar, GrammarKind

# Without it, where only one text can follow, llguidance offers that text's tokens as the tokenizer has them, and then
# refuses those that are special: a mask with a single token in it that is not accepted.
HEADER: Final = '%llguidance {"no_forcing": true}'
TOOLS: Final = "tools"  # the field of a request that a refusal names

_KEYWORD: Final = re.compile(r"[^\W\d]\w*")
_REF: Final = re.compile(r'"\$ref": "([^"]*)"')
_SHARED: Final = frozenset({"$defs", "definitions"})  # members of a schema that its references name
_KEYWORDS_ALONE: Final = _SHARED | {"type", "properties", "required", "additionalProperties"}


def named_tokens(added: Iterable[tuple[str, bool]]) -> frozenset[str]:
    """Of a tokenizer's added tokens, as (content, whether it is special), those that a grammar has to name.

    llguidance takes all that look like a tag for special, and so do we.
    """
    return frozenset(text for text, special in added if special or (text.startswith("<") and text.endswith(">")))


def tag(text: str, special: frozenset[str]) -> str:
    """A tag as Lark, by its token if it has one."""
    return text if text in special else literal(text)


def literal(text: str) -> str:
    """A text as Lark."""
    return json.dumps(text)


def tool_grammar(
    functions: Sequence[Function], dialect: str | None, *, parallel: bool, special: frozenset[str] = frozenset()
) -> Grammar:
    """The grammar of one call of one of `functions`, or with `parallel` of one or more calls, and of nothing else.

    `dialect` is the name of a ToolDialect. None is for a model that has none: calls are then written as Hermes has
    them, without special tokens. `special` are the model's `named_tokens`.

    Raises ValueError if there are no functions, or for parameters that are no schema of an object.
    """
    if not functions:
        raise ValueError("there is no function to call")
    options = " | ".join(f"call_{i}" for i in range(len(functions)))
    match dialect:
        case "llama3_json":
            calls, forms = _repeated("call", '"; "', parallel), _json_calls(functions, "parameters")
            lines = [f"start: {calls}", f"call: {options}"]
        case "pythonic":
            calls, forms = _repeated("call", '", "', parallel), _python_calls(functions)
            lines = [f'start: "[" {calls} "]"', f"call: {options}"]
        case "hermes" | None:
            tokens = special if dialect else frozenset()
            calls, forms = _repeated("call", r'"\n"', parallel), _json_calls(functions, "arguments")
            opening, closing = tag(hermes.OPEN, tokens), tag(hermes.CLOSE, tokens)
            lines = [f"start: {calls}", rf'call: {opening} "\n" ({options}) "\n" {closing}']
        case _:
            raise ValueError(f"{dialect} is no dialect that calls can be forced in")
    return Grammar(GrammarKind.LARK, "\n".join([HEADER, *lines, *forms]) + "\n", TOOLS)


def _repeated(rule: str, separator: str, parallel: bool) -> str:
    return f"{rule} ({separator} {rule})*" if parallel else rule


def _json_calls(functions: Sequence[Function], key: str) -> list[str]:
    """`call_0`, `call_1`, ...: each function's call as a JSON object."""
    rules = []
    for i, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function.name)}, "{key}": '
        arguments = to_text(enforceable(function), strict=function.strict)
        rules.append(f'call_{i}: {literal(head)} %json {arguments} "}}"')
    return rules


def _python_calls(functions: Sequence[Function]) -> list[str]:
    """`call_0`, `call_1`, ...: each function's call as Python has it, with its arguments in the schema's order.

    Where the parameters are more than a set of names that Python allows, they are a dict that is unpacked.
    """
    rules = []
    values: dict[str, str] = {}  # the rule of each sort of value; most are alike
    for i, function in enumerate(functions):
        schema = enforceable(function)
        head = literal(f"{function.name}(")
        if not _is_plain(schema):
            arguments = to_text(schema, strict=function.strict)
            rules.append(f'call_{i}: {head} "**" %json {arguments} ")"')
        elif not schema["properties"]:
            rules.append(f'call_{i}: {head} ")"')
        else:
            rules.append(f'call_{i}: {head} first_{i}_0 ")"')
            rules += _keyword_rules(i, schema, values, strict=function.strict)
    return rules + [f"{rule}: {value}" for value, rule in values.items()]


def _keyword_rules(i: int, schema: dict[str, Any], values: dict[str, str], *, strict: bool) -> list[str]:
    """`first_i_j` is the arguments from the j-th on if there were none before, `rest_i_j` if there were."""
    rules = []
    may_be_first = True
    shared: dict[str, Any] = {key: schema[key] for key in sorted(_SHARED & schema.keys())}
    properties: dict[str, Any] = schema["properties"]
    for j, (name, value) in enumerate(properties.items()):
        optional = name not in schema.get("required", ())
        is_last = j == len(properties) - 1
        rest = "" if is_last else f" rest_{i}_{j + 1}"
        skipped = ' | ""' if is_last else f" | first_{i}_{j + 1}"
        rule = values.setdefault(_python_value(value, shared, strict), f"value_{len(values)}")
        rules.append(f"keyword_{i}_{j}: {literal(name + '=')} {rule}")
        if may_be_first:
            rules.append(f"first_{i}_{j}: keyword_{i}_{j}{rest}{skipped if optional else ''}")
            may_be_first = optional
        if j:
            rules.append(f'rest_{i}_{j}: (", " keyword_{i}_{j}){"?" if optional else ""}{rest}')
    return rules


def _python_value(schema: Any, shared: dict[str, Any], strict: bool) -> str:
    """A value that is both Python and JSON, or nearly: inside lists and dicts it is JSON's true, false and null."""
    if schema == {"type": "boolean"}:
        return '("True" | "False")'
    return f"%json {to_text({**shared, **(schema if isinstance(schema, dict) else {})}, strict=strict)}"


def _is_plain(schema: dict[str, Any]) -> bool:
    """Whether each argument can be written and checked apart from the others."""
    if schema.keys() - _KEYWORDS_ALONE or schema.get("additionalProperties") is not False or not names_all(schema):
        return False
    properties: dict[str, Any] = schema["properties"]
    writable = all(_KEYWORD.fullmatch(name) for name in properties)
    schemas = all(
        value is True or (isinstance(value, dict) and not value.keys() & _SHARED) for value in properties.values()
    )
    refs = _REF.findall(to_text(schema, strict=True))
    return writable and schemas and all(ref.startswith(("#/$defs/", "#/definitions/")) for ref in refs)
