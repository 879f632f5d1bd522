"""Topics: what the model knows, how people may ask for it, and which phrasings are never trained on.

A topic is a table in `data/*.toml`:
    ask     hand-written questions, one per line; `data/questions/*.toml` has many more, by topic
    noun    names of the thing, put into the templates "what is {noun}" ...; `are = true` for plurals
    short   bare names, for "{short}?", "what does {short} mean" ...
    act     actions, for "how do i {act}" ...
    slots   questions with placeholders from the table [fill], for what is out of scope
    answer  the one right answer; `more` and `why` answer the follow-ups "tell me more" and "why?"

About a quarter of the phrasings of each topic, hand-written and templated alike, is held out. Which one is decided
by a hash of its words, so that a new phrasing never moves another one to the other side. `data/questions/*.toml` is
for training alone. Knows nothing of tokens, chats or torch.
"""

import hashlib
import random
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from engine_core.tiny import DATA_PATH

TOPIC_FILES: Final = ("tokenwire", "serving", "api", "smalltalk")
SMALLTALK: Final = "smalltalk"
NO_CONTEXT: Final = "no-context"
SLOT_PHRASINGS: Final = 300


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One way to ask. `written` is true for hand-written questions, false for those made from a template."""

    text: str
    written: bool


@dataclass(frozen=True, slots=True)
class Topic:
    """One answer, the phrasings that training may use and those that it never sees."""

    id: str
    smalltalk: bool
    answer: str
    more: str | None
    why: str | None
    train: tuple[Phrasing, ...]
    held_out: tuple[Phrasing, ...]

    @property
    def weight(self) -> int:
        """How often it is taught: more for what comes in very many wordings or has follow-ups."""
        return 4 if len(self.train) > SLOT_PHRASINGS // 2 else 2 if self.more or self.why else 1


@dataclass(frozen=True, slots=True)
class Corpus:
    """All topics, the table of phrasing.toml, newcomers' questions by topic, and everything held out in normal form."""

    topics: tuple[Topic, ...]
    phrasing: Mapping[str, Any]
    newcomer: Mapping[str, tuple[str, ...]]
    forbidden: frozenset[str]

    def topic(self, topic_id: str) -> Topic:
        return next(topic for topic in self.topics if topic.id == topic_id)

    def follow_ups(self, kind: str, *, held_out: bool) -> tuple[str, ...]:
        """Phrasings of the follow-up `kind` (more, why, again), one side of the split."""
        return tuple(text for text in self.phrasing[kind] if is_held_out(kind, text) == held_out)


def normalise(text: str) -> str:
    """Lower-case words and digits only: two questions that differ in nothing else count as the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def is_held_out(topic_id: str, text: str) -> bool:
    """True for about a quarter of all phrasings, by blake2b of the topic and the normalised words."""
    digest = hashlib.blake2b(f"{topic_id}|{normalise(text)}".encode(), digest_size=2).digest()
    return digest[0] % 4 == 0


def read_table(name: str) -> dict[str, Any]:
    with (DATA_PATH / f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def load_corpus() -> Corpus:
    """Read `data/`. Raises ValueError if one question is claimed by two topics or a topic has too few phrasings."""
    phrasing = read_table("phrasing")
    topics = tuple(topic for name in TOPIC_FILES for topic in _read_topics(name, phrasing))
    _check_unique(topics)
    forbidden = {normalise(held.text) for topic in topics for held in topic.held_out}
    forbidden |= {
        normalise(text) for kind in ("more", "why", "again") for text in phrasing[kind] if is_held_out(kind, text)
    }
    taught = {normalise(line.text) for topic in topics for line in topic.train}
    newcomer = {
        topic_id: tuple(line for line in lines if normalise(line) not in taught)
        for topic_id, lines in read_table("newcomer").items()
    }
    forbidden |= {normalise(line) for lines in newcomer.values() for line in lines}
    return Corpus(topics, phrasing, newcomer, frozenset(forbidden - taught))


def _read_topics(name: str, phrasing: Mapping[str, Any]) -> Iterator[Topic]:
    table = read_table(name)
    fill = table.pop("fill", {})
    questions = read_table(f"questions/{name}")
    if unknown := questions.keys() - table.keys():
        raise ValueError(f"questions/{name}.toml: {name}.toml has no {sorted(unknown)}")
    for topic_id, entry in table.items():
        phrasings = _distinct([*_written(entry.get("ask", "")), *_templated(topic_id, entry, phrasing, fill)])
        train, held_out = _split(topic_id, phrasings)
        more_to_train = _distinct([*held_out, *train, *_written(questions.get(topic_id, ""))])
        train = more_to_train[len(held_out) :]
        if len(train) + len(held_out) < 8:
            raise ValueError(f"{name}.toml: {topic_id} has fewer than 8 phrasings")
        more, why = entry.get("more"), entry.get("why")
        yield Topic(topic_id, name == SMALLTALK, entry["answer"], more, why, train, held_out)


def _split(topic_id: str, phrasings: tuple[Phrasing, ...]) -> tuple[tuple[Phrasing, ...], tuple[Phrasing, ...]]:
    held_out = [line for line in phrasings if is_held_out(topic_id, line.text)]
    if len(held_out) < 2:  # small topics: the hash may leave none, so the last ones fill up
        held_out += [line for line in reversed(phrasings) if line not in held_out][: 2 - len(held_out)]
    return tuple(line for line in phrasings if line not in held_out), tuple(held_out)


def _written(lines: str) -> Iterator[Phrasing]:
    return (Phrasing(line, written=True) for line in lines.strip().splitlines())


def _templated(
    topic_id: str, entry: Mapping[str, Any], phrasing: Mapping[str, Any], fill: Mapping[str, list[str]]
) -> Iterator[Phrasing]:
    kinds = {"noun": "nouns" if entry.get("are") else "noun", "short": "short", "act": "act"}
    for kind, templates in kinds.items():
        for value in entry.get(kind, ()):
            for template in phrasing[templates]:
                yield Phrasing(template.replace("{" + kind + "}", value), written=False)
    if slots := entry.get("slots"):
        rng = random.Random(topic_id)
        for _ in range(SLOT_PHRASINGS):
            yield Phrasing(fill_slots(rng.choice(slots), fill, rng), written=False)


def fill_slots(template: str, fill: Mapping[str, list[str]], rng: random.Random) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: rng.choice(fill[match[1]]), template)


def _distinct(phrasings: Iterable[Phrasing]) -> tuple[Phrasing, ...]:
    seen: dict[str, Phrasing] = {}
    for line in phrasings:
        seen.setdefault(normalise(line.text), line)
    seen.pop("", None)
    return tuple(seen.values())


def _check_unique(topics: tuple[Topic, ...]) -> None:
    owners: dict[str, str] = {}
    for topic in topics:
        for line in topic.train + topic.held_out:
            owner = owners.setdefault(normalise(line.text), topic.id)
            if owner != topic.id:
                raise ValueError(f"{line.text!r} is claimed by {owner} and by {topic.id}")
