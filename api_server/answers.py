"""What is counted where responses go out: each by the route it belongs to, whoever gives it, the application or what
stands before it, and how long connections take no bytes."""

import time
from collections.abc import Iterable
from typing import Final

from starlette.routing import compile_path

from api_server.tallies import Tallies

OTHER: Final = "other"  # all paths that have no route: what clients make up is no label
OK: Final = 200
REFUSED: Final = "tokenwire.refused"  # in a scope: the status that went out in place of the application's answer


class Answers:
    """Made for the routes of an app."""

    def __init__(self, tallies: Tallies, templates: Iterable[str]) -> None:
        """Every template is there from the start, with the answer that it usually has."""
        self.tallies: Final = tallies
        self._templates: Final = frozenset(templates)
        self._patterns: Final = [(compile_path(each)[0], each) for each in self._templates if "{" in each]
        for template in (*self._templates, OTHER):
            tallies.requests.setdefault(template, {OK: 0})

    def count(self, path: str, status: int) -> None:
        """A response to a request for this path has begun."""
        self.tallies.answered(self.template(path), status)

    def template(self, path: str) -> str:
        if path in self._templates:
            return path
        return next((template for pattern, template in self._patterns if pattern.fullmatch(path)), OTHER)


class SendWait:
    """Times each pause in which one connection takes no bytes."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies: Final = tallies
        self._since_s: float | None = None

    def begin(self) -> None:
        self._since_s = time.monotonic()

    def end(self) -> None:
        """May be told without a begin."""
        if self._since_s is not None:
            self._tallies.stalled(time.monotonic() - self._since_s)
            self._since_s = None
