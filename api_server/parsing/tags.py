"""Tags in a text that comes in pieces. Pure; knows the tags' spelling and nothing of what they mark."""

from collections.abc import Sequence
from typing import Final

SPACE: Final = " \t\r\n"  # what JSON calls whitespace; around tags and calls it carries no meaning


def unfinished(text: str, tags: Sequence[str], start: int = 0) -> int:
    """Where in `text`, from `start` on, one of `tags` begins that is not complete yet; the text's length if none does.

    Complete tags are not looked for. A tag begins with `<` and holds no other, so only the last `<` can be one's
    beginning.
    """
    at = text.rfind("<", max(start, len(text) - max(map(len, tags)) + 1))
    if at >= 0 and any(tag.startswith(text[at:]) for tag in tags):
        return at
    return len(text)
