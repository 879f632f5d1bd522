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

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: tuple[str, ...], *, include: bool) -> None:
        self._stops: Final = stops
        self._include: Final = include  # whether the stop string itself is shown
        self._held = ""

    def feed(self, text: str) -> str | Hit:
        """The text that can be shown now, or the Hit that ends it. Not to be fed again after a Hit."""
        text = self._held + text
        # A stop string that is complete only now begins in what was held back, so the search never misses one.
        for stop in self._stops:
            if stop in text:
                return self._hit(text)
        begin = self._possible_start(text)
        self._held = text[begin:]
        return text[:begin]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text

    def _hit(self, text: str) -> Hit:
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        end, start, stop = min(found)
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
