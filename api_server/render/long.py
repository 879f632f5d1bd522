"""A JSON body with lists so long that they are made while it is being sent, a part at a time."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import Raw

from api_server.render.frame import to_json

MARK: Final = b"\xff"  # where a list goes; no byte of UTF-8


class LongLists:
    """The long lists of one body, in the order in which they stand in it."""

    def __init__(self) -> None:
        self._lists: list[Iterable[bytes]] = []

    def add(self, parts: Iterable[bytes]) -> Any:
        """What to put into the value that will be encoded, in the place of a list whose `elements` the parts are."""
        self._lists.append(parts)
        return Raw(MARK)

    def body(self, value: object) -> bytes | Iterator[bytes]:
        """The JSON of `value`, with its lists. Each part of a list is made when it is asked for; without a list, there
        are no parts."""
        data = to_json(value)
        return self._filled(data) if self._lists else data

    def _filled(self, data: bytes) -> Iterator[bytes]:
        before, *rest = data.split(MARK)
        yield before
        for parts, after in zip(self._lists, rest, strict=True):
            separator = b"["
            for part in parts:
                if part:
                    yield separator + part
                    separator = b","
            yield (b"[]" if separator == b"[" else b"]") + after


def elements(items: object) -> bytes:
    """A list's JSON without its brackets."""
    return to_json(items)[1:-1]
