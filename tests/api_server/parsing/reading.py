"""Reading a text that comes in pieces, and what holds for every reader whatever it reads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hypothesis import strategies as st

from api_server.parsing import Reader, Said


@dataclass
class Reading:
    """All that was said, joined."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]  # name and arguments


def steps(reader: Reader, pieces: Iterable[str]) -> list[Said]:
    """What is said of each piece, and at the end."""
    return [*(reader.feed(piece) for piece in pieces), reader.end()]


def join(said: Iterable[Said]) -> Reading:
    """Checks what a client relies on: calls come one after another, and each has its name first and once."""
    reading = Reading("", "", [])
    for one in said:
        reading.content += one.content
        reading.reasoning += one.reasoning
        for call in one.calls:
            if call.name is not None:
                assert call.index == len(reading.calls)
                reading.calls.append((call.name, ""))
            assert call.index == len(reading.calls) - 1
            assert call.arguments
            name, arguments = reading.calls[call.index]
            reading.calls[call.index] = (name, arguments + call.arguments)
    return reading


def read(reader: Reader, *pieces: str) -> Reading:
    return join(steps(reader, pieces))


def read_both_ways(make: Callable[[], Reader], text: str) -> Reading:
    """The reading of a text, which is the same in one piece and in pieces of one character."""
    whole = read(make(), text)
    assert read(make(), *text) == whole
    return whole


def held(value: object) -> list[str]:
    """All strings that an object keeps, wherever it keeps them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [text for item in value for text in held(item)]
    names = getattr(type(value), "__slots__", ())
    return [text for name in names if hasattr(value, name) for text in held(getattr(value, name))]


anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)  # of every plane


def texts(*fragments: str) -> st.SearchStrategy[str]:
    """Texts that are made of a format's own parts, of parts of those, and of anything else."""
    parts = st.sampled_from(fragments)
    cuts = st.tuples(parts, st.integers(0, 12), st.integers(0, 12)).map(lambda cut: cut[0][cut[1] :][: cut[2]])
    return st.lists(st.one_of(parts, parts, cuts, anything), max_size=14).map("".join)


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The text in pieces, cut at those places that it has; pieces may be empty."""
    at = sorted(place % (len(text) + 1) for place in places)
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


places = st.lists(st.integers(0, 10_000), max_size=30)
