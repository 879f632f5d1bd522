"""What becomes of a child's place after each death: how soon the next one starts, or that none should."""

from collections.abc import Sequence
from typing import Final

from deploy.children import Child, describe

BAD_USAGE: Final = 2
COULD_NOT_START: Final = 3
STEADY_S: Final = 60.0  # a child that lived so long was well: the back-off begins anew
FAILED_STARTS_MAX: Final = 5  # in a row, by a child that was ready once or was killed before it could be
YOUNG_S: Final = 1.0  # dying younger than this is a failed start, ready or not


class Fatal(Exception):
    """Starting again would not help. The message is empty if the child has told already; `code` is the command's."""

    def __init__(self, message: str, code: int = COULD_NOT_START) -> None:
        super().__init__(message)
        self.code = code


class Fate:
    """Of one place, whoever holds it."""

    def __init__(self, name: str, backoff_s: Sequence[float]) -> None:
        self.story = ""
        self._backoff_s = backoff_s
        self._name = name
        self._proved = False  # it was ready once
        self._deaths = 0  # since it last was steady
        self._failed_starts = 0  # in a row

    def after(self, child: Child, code: int) -> float:
        """Seconds to wait before the next start. Raises Fatal if there should be none."""
        self.story = f"{self._name} (pid {child.pid}) {describe(code)}"
        ready = child.ready
        if not ready and not self._proved and code >= 0:
            told = code in (BAD_USAGE, COULD_NOT_START)
            raise Fatal("" if told else f"{self.story} before it was ready", code if told else COULD_NOT_START)
        self._proved = self._proved or ready
        self._failed_starts = self._failed_starts + 1 if not ready or child.lived_s < YOUNG_S else 0
        if self._failed_starts >= FAILED_STARTS_MAX:
            raise Fatal(f"{self.story}: {FAILED_STARTS_MAX} starts in a row have failed")
        self._deaths = 0 if child.lived_s >= STEADY_S else self._deaths
        delay_s = self._backoff_s[min(self._deaths, len(self._backoff_s) - 1)]
        self._deaths += 1
        return delay_s
