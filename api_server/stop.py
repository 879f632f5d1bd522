"""Stop strings in a text that comes piece by piece. Pure: what is visible depends on the text, not on its pieces.

The stop string that is complete first wins, of several that end at the same character the longest: no text behind that
character can change the outcome, so it is known at once, however the text is split.
"""

from typing import Final, NamedTuple


class Hit(NamedTuple):
    """`text` is what is still to be shown, `stop` the string that was found."""

    text: str
    stop: str


class StopMatcher:
    """Holds back the longest end of the text that could be the beginning of a stop string."""

    __slots__ = ("_beginnings", "_held", "_include", "_stops")

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        self._stops: Final = stops
        self._beginnings: Final = frozenset(stop[0] for stop in stops)
        self._include: Final = include  # whether the stop string itself is shown
        self._held = ""

    def feed(self, text: str, *, armed: bool = True) -> str | Hit:
        """The text that can be shown now, or the Hit that ends it. Not to be fed again after a Hit.

        A stop string that is complete in a text fed with `armed` off is text like any other; one that merely begins
        there may still be completed later, and so is held back.
        """
        if not self._held and self._beginnings.isdisjoint(text):
            return text
        seen = len(self._held)
        text = self._held + text
        if armed:
            # A stop string that is complete only now begins in what was held back, so the search never misses one.
            ends = [(start + len(stop), start, stop) for stop in self._stops if (start := _find(text, stop, seen)) >= 0]
            if ends:
                return self._hit(text, *min(ends))
        begin = self._possible_start(text)
        self._held = text[begin:]
        return text[:begin]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text

    def _hit(self, text: str, end: int, start: int, stop: str) -> Hit:
        self._held = ""
        return Hit(text[: end if self._include else start], stop)

    def _possible_start(self, text: str) -> int:
        """Where the earliest unfinished stop string may begin; the text's length if nowhere."""
        earliest = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), earliest)
            while start >= 0:
                if stop.startswith(text[start:]):
                    earliest = start
                    break
                start = text.find(stop[0], start + 1, earliest)
        return earliest


def _find(text: str, stop: str, seen: int) -> int:
    """Where the first `stop` begins that ends behind the first `seen` characters; -1 if there is none."""
    return text.find(stop, max(0, seen - len(stop) + 1))
