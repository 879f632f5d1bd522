"""Where a request body may hold a number, found from its type, so that a new field is found by itself."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

MAX_DEPTH = 5  # of places inside places: types may hold themselves

Writer = Callable[[str], str]  # from a number's literal to the JSON text of the value that holds it


def places(kind: Any) -> dict[str, Writer]:
    """Of the fields of a request struct: by its path, what writes the value of the top-level field."""
    struct = inspect.type_info(kind)
    assert isinstance(struct, inspect.StructType)
    found: dict[str, Writer] = {}
    for field in struct.fields:
        for path, writer in _within(field.type, 0):
            found[field.encode_name + path] = writer
    return found


def _within(kind: inspect.Type, depth: int) -> Iterator[tuple[str, Writer]]:
    """The places inside a value of this type."""
    if depth > MAX_DEPTH:
        return
    match kind:
        case inspect.IntType() | inspect.FloatType() | inspect.AnyType():
            yield "", lambda literal: literal
        case inspect.Metadata(type=inner):
            yield from _within(inner, depth)
        case inspect.UnionType(types=types):
            for each in types:
                yield from _within(each, depth)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            for path, writer in _within(item, depth + 1):
                yield f"[]{path}", lambda literal, writer=writer: f"[{writer(literal)}]"  # type: ignore[misc]
        case inspect.DictType(key_type=key, value_type=value):
            if isinstance(_bare(key), inspect.IntType | inspect.FloatType):
                yield "{key}", lambda literal: _pair(literal, sample(value))
            for path, writer in _within(value, depth + 1):
                yield f"{{}}{path}", lambda literal, writer=writer: _pair(_key(key), writer(literal))  # type: ignore[misc]
        case inspect.StructType(fields=fields):
            for field in fields:
                for path, writer in _within(field.type, depth + 1):
                    yield f".{field.encode_name}{path}", _member(kind, field.encode_name, writer)


def _member(struct: inspect.StructType, name: str, writer: Writer) -> Writer:
    return lambda literal: _object(struct, {name: writer(literal)})


def _object(struct: inspect.StructType, given: dict[str, str]) -> str:
    """With these members, and those that it can't be without."""
    members = {} if struct.tag is None else {str(struct.tag_field): msgspec.json.encode(struct.tag).decode()}
    members |= {field.encode_name: sample(field.type) for field in struct.fields if field.required}
    return "{" + ", ".join(f'"{name}": {text}' for name, text in (members | given).items()) + "}"


def sample(kind: inspect.Type) -> str:
    """JSON text of some value of the type."""
    match _bare(kind):
        case inspect.StructType() as struct:
            return _object(struct, {})
        case inspect.UnionType(types=types):
            return sample(types[0])
        case inspect.LiteralType(values=values):
            return msgspec.json.encode(values[0]).decode()
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return f"[{sample(item)}]"
        case inspect.DictType():
            return "{}"
        case inspect.BoolType():
            return "true"
        case inspect.IntType() | inspect.FloatType() | inspect.AnyType():
            return "1"
        case inspect.NoneType():
            return "null"
        case _:
            return '"a"'


def _pair(name: str, value: str) -> str:
    return f'{{"{name}": {value}}}'


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _key(kind: inspect.Type) -> str:
    """One that means something in a JSON schema."""
    return "1" if isinstance(_bare(kind), inspect.IntType | inspect.FloatType) else "minimum"
