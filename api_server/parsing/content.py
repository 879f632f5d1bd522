"""The readers of answers that are all content, and of those that have none."""

from typing import Final

from api_server.parsing import Reader, Said


class ContentReader:
    """For a model that neither thinks nor calls: says every piece as it is and holds nothing back."""

    __slots__ = ()

    def feed(self, text: str) -> Said:
        return Said(content=text)

    def end(self) -> Said:
        return Said()


class CallsReader:
    """For an answer that is held to calls: what `inner` takes for content is a tag, or a call that was cut off before
    its name."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Reader) -> None:
        self._inner: Final = inner

    def feed(self, text: str) -> Said:
        return Said(calls=self._inner.feed(text).calls)

    def end(self) -> Said:
        return Said(calls=self._inner.end().calls)
