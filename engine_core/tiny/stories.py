"""Short stories from parts: one hero, one plot, one friend, the same names all through.

Knows `data/stories.toml` and nothing of the questions and answers, tokens or torch.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine_core.tiny.corpus import read_table

HE = {"he": "he", "his": "his", "him": "him"}
AGREEING = ("hero", "name", "friend", "ally", "he", "his", "him")
SHE = {"he": "she", "his": "her", "him": "her"}


@cache
def story_parts() -> Mapping[str, Any]:
    return read_table("stories")


@dataclass(frozen=True, slots=True)
class Story:
    """A request for a story, the story itself, about 130 words, and the words in it that must agree all through."""

    question: str
    text: str
    cast: tuple[str, ...]


def make_story(rng: random.Random, hero: str | None = None) -> Story:
    """A story and a question that asks for it; with no hero given, one question in three leaves the choice open."""
    parts = story_parts()
    hero_of_story = hero or rng.choice(parts["heroes"])
    if hero is None and rng.random() < 0.33:
        question = rng.choice(parts["ask"]["any"])
    else:
        question = rng.choice(parts["ask"]["hero"]).replace("{hero}", hero_of_story)
    plot = rng.choice(parts["plot"])["parts"]
    lines = [rng.choice(parts["openings"]), *(rng.choice(variants) for variants in plot), rng.choice(parts["endings"])]
    if rng.random() < 0.4:
        lines.append(rng.choice(parts["morals"]))
    cast = _cast(parts, hero_of_story, rng)
    text = _fill(" ".join(lines), cast)
    return Story(_article(question), _article(text), tuple(cast[role] for role in AGREEING))


def _cast(parts: Mapping[str, Any], hero: str, rng: random.Random) -> dict[str, str]:
    female = hero in parts["she_heroes"] or (hero not in parts["he_heroes"] and rng.random() < 0.5)
    name = rng.choice(parts["she" if female else "he"])
    friend = rng.choice([other for other in parts["he"] + parts["she"] if other != name])
    return {
        **(SHE if female else HE),
        "hero": hero,
        "name": name,
        "friend": friend,
        "ally": rng.choice([ally for ally in parts["allies"] if ally != hero]),
        "adj": rng.choice(parts["adjectives"]),
        "place": rng.choice(parts["places"]),
        "home": rng.choice(parts["homes"]),
        "thing": rng.choice(parts["things"]),
        "food": rng.choice(parts["foods"]),
        "weather": rng.choice(parts["weathers"]),
    }


def _fill(text: str, cast: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        slot = match[1]
        return cast[slot] if slot in cast else cast[slot.lower()].capitalize()

    return re.sub(r"\{(\w+)\}", value, text)


def _article(text: str) -> str:
    """`a owl` becomes `an owl`."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
