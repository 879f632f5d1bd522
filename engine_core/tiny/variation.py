"""Surface variants of a question: other words for the same, something before or after, case, punctuation, dropped
words, typos.

Knows strings and a random generator; never returns a question that is held out.
"""

import random
import re
from dataclasses import dataclass, field

from engine_core.tiny.corpus import Corpus, normalise

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Variation:
    """Draws variants of the training phrasings of `corpus` with `rng`."""

    corpus: Corpus
    rng: random.Random
    synonyms: dict[str, list[str]] = field(default_factory=dict)
    little: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.little.update(self.corpus.phrasing["droppable"])
        for group in self.corpus.phrasing["same"]:
            for phrase in group:
                self.synonyms.setdefault(phrase, []).extend(other for other in group if other != phrase)

    def vary(self, text: str) -> str:
        """A variant of `text` for training; the plain text if eight tries all hit a held-out question."""
        for _ in range(8):
            variant = self.surface(self._reword(text))
            if normalise(variant) not in self.corpus.forbidden:
                return variant
        return text

    def surface(self, text: str) -> str:
        """Case and punctuation as people type them."""
        rng = self.rng
        style = rng.random()
        if style < 0.45:
            text = text[:1].upper() + text[1:]
            text = re.sub(r"\bi\b", "I", text)
        elif style < 0.8:
            text = text.lower()
        elif style < 0.83:
            text = text.upper()
        return text + rng.choices(["?", "", ".", "!", "??", " ?", "...", "?!"], [50, 34, 8, 3, 1, 2, 1, 1])[0]

    def _reword(self, text: str) -> str:
        rng = self.rng
        if rng.random() < 0.4:
            text = self._swap_synonym(text)
            if rng.random() < 0.4:
                text = self._swap_synonym(text)
        if rng.random() < 0.07:
            text = self._keywords(text)
        elif rng.random() < 0.2:
            text = self._drop_word(text)
        elif rng.random() < 0.1:
            text = self._thin(text)
        if rng.random() < 0.12:
            text = self._typo(text)
        if rng.random() < 0.25:
            text = rng.choice(self.corpus.phrasing["before"]) + text
        if rng.random() < 0.15:
            text += rng.choice(self.corpus.phrasing["after"])
        return text

    def _swap_synonym(self, text: str) -> str:
        lower = text.lower()
        present = [phrase for phrase in self.synonyms if re.search(rf"\b{re.escape(phrase)}\b", lower)]
        if not present:
            return text
        phrase = self.rng.choice(present)
        return re.sub(rf"\b{re.escape(phrase)}\b", self.rng.choice(self.synonyms[phrase]), lower, count=1)

    def _drop_word(self, text: str) -> str:
        """Without one word: mostly one that says little, sometimes any."""
        words = text.split()
        places = [place for place, word in enumerate(words) if word.lower() in self.little or self.rng.random() < 0.1]
        if len(words) < 4 or not places:
            return text
        del words[self.rng.choice(places)]
        return " ".join(words)

    def _thin(self, text: str) -> str:
        """Without every sixth word or so: the answer must not hang on one."""
        words = [word for word in text.split() if self.rng.random() > 0.16]
        return " ".join(words) if len(words) > 2 else text

    def _keywords(self, text: str) -> str:
        """Only the words that say something, as people type into a search box."""
        words = [word for word in text.split() if word.lower() not in self.little]
        return " ".join(words) if len(words) > 1 else text

    def _typo(self, text: str) -> str:
        rng = self.rng
        words = text.split()
        places = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
        if not places:
            return text
        place = rng.choice(places)
        word = words[place]
        at = rng.randrange(1, len(word) - 1)
        words[place] = rng.choice(
            [
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + rng.choice(LETTERS) + word[at + 1 :],
            ]
        )
        return " ".join(words)
