"""Training documents: chats of one or many turns, raw questions, plain prose and stories, drawn without end from one
seed.

A document is a list of (text, weight) segments; the weight is how much each token of the segment counts in the loss.
The text of a chat is exactly what the chat template renders. Knows the corpus and the template's special tokens,
nothing of ids or torch.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from engine_core.tiny.corpus import NO_CONTEXT, Corpus, Topic
from engine_core.tiny.stories import Story, make_story
from engine_core.tiny.tokenizer import END_OF_TEXT, IM_END, IM_START
from engine_core.tiny.variation import Variation


class Segment(NamedTuple):
    """Text and the weight of its tokens. The first tokens of an answer decide which answer it is: `decisive`. What
    somebody `asked` may be cut into tokens in more than one way."""

    text: str
    weight: float = 0.0
    decisive: bool = False
    asked: bool = False


Document = list[Segment]

BRIEF_WORDS = 7
BRIEF_STORY_SEGMENTS = 8
STORY_WEIGHT = 0.5  # most of a story is a free choice that cannot be learned
AGREEMENT_WEIGHT = 4.0
WRITTEN_SHARE = 0.6  # of the questions; the others are any, templated ones among them
QUESTION_WEIGHT = 0.1  # predicting questions a little teaches which words mean the same


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; `topic` is what a follow-up refers to; a story has none, but segments."""

    question: str
    answer: str
    topic: Topic | None
    told: list[Segment] | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """How often which kind of document comes."""

    brief: float = 0.5  # of all: an answer is soon known by heart, which question it belongs to is not
    single: float = 0.5  # of the others: chats of one turn, up to 0.86, from where on there are no more chats
    story: float = 0.12  # of the questions that begin a topic: wishes for a story


class Conversations:
    """Draws documents. Topics come in shuffled rounds, so that each is seen as often as its weight says."""

    def __init__(self, corpus: Corpus, seed: int, mix: Mix = Mix()) -> None:
        self.mix = mix
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.variation = Variation(corpus, self.rng)
        self.follow_ups = {kind: corpus.follow_ups(kind, held_out=False) for kind in ("more", "why", "again")}
        self.no_context = corpus.topic(NO_CONTEXT)
        self.smalltalk = [topic for topic in corpus.topics if topic.smalltalk]
        self.round: list[Topic] = []

    def documents(self) -> Iterator[Document]:
        rng = self.rng
        while True:
            if rng.random() < self.mix.brief:
                yield self.brief()
                continue
            kind = rng.random()
            if kind < self.mix.single:
                yield self.chat(1)
            elif kind < 0.86:
                yield self.chat(rng.choice([2, 2, 2, 2, 3, 3, 5]))
            elif kind < 0.862:
                yield self.chat(rng.randrange(8, 24))
            elif kind < 0.895:
                yield self.raw_question()
            elif kind < 0.905:
                yield self.prose([Segment(self.next_topic().answer, 1.0)])
            elif kind < 0.925:
                yield self.stuck()
            else:
                yield self.prose(story_segments(make_story(rng)))

    def chat(self, turns: int) -> Document:
        """A conversation as the chat template renders it; only the assistant's words count fully."""
        document: Document = []
        if self.rng.random() < 0.3:
            system = " ".join(self.rng.sample(self.corpus.phrasing["system"], self.rng.choice([1, 1, 1, 2, 3])))
            document.append(Segment(f"{IM_START}system\n{system}{IM_END}\n"))
        last: Turn | None = None
        for _ in range(turns):
            last = self.next_turn(last)
            document.append(Segment(f"{IM_START}user\n"))
            document.append(Segment(last.question, QUESTION_WEIGHT, asked=True))
            document.append(Segment(f"{IM_END}\n{IM_START}assistant\n"))
            document.extend(last.told or [Segment(last.answer, 1.0, decisive=True)])
            document.append(Segment(IM_END, 1.0))
            document.append(Segment("\n"))
        return document

    def brief(self) -> Document:
        """A chat's first question and only the words that decide which answer, or a story about whom, follows."""
        turn = self.next_turn(None)
        words = " ".join(turn.answer.split(" ")[:BRIEF_WORDS])
        return [
            Segment(f"{IM_START}user\n"),
            Segment(turn.question, QUESTION_WEIGHT, asked=True),
            Segment(f"{IM_END}\n{IM_START}assistant\n"),
            *(turn.told[:BRIEF_STORY_SEGMENTS] if turn.told else [Segment(words, 1.0, decisive=True)]),
        ]

    def raw_question(self) -> Document:
        """A question without any template, as in a plain completion."""
        turn = self.ask(self.next_topic())
        question, answer = self.rng.choice([("{}", "\n{}"), ("{}\n", "{}"), ("Q: {}\nA:", " {}"), ("{}", "\n\n{}")])
        text = answer.format(turn.answer) + END_OF_TEXT
        return [Segment(question.format(turn.question)), Segment(text, 1.0, decisive=True)]

    def prose(self, segments: list[Segment]) -> Document:
        """Plain text that ends with the end-of-text token and begins with it every other time."""
        beginning = [Segment(END_OF_TEXT)] if self.rng.random() < 0.5 else []
        return [*beginning, *segments, Segment(END_OF_TEXT, 1.0)]

    def stuck(self) -> Document:
        """The beginning of some text, or words in no order, and the admission that the model cannot go on with it."""
        words = " ".join(
            self.rng.choice(self.next_topic().train).text.split()[-1] for _ in range(self.rng.randrange(1, 6))
        )
        opening = self.rng.choice(self.corpus.phrasing["openings"])
        text = self.rng.choice([opening, f"{opening} {words}", words])
        return [Segment(text), Segment(str(self.corpus.phrasing["stuck"]) + END_OF_TEXT, 1.0, decisive=True)]

    def next_turn(self, last: Turn | None) -> Turn:
        kind = self.rng.random()
        if last is None or kind < 0.5:
            if self.rng.random() < self.mix.story:
                return self.story()
            if last is not None and self.rng.random() < 0.2:
                return self.ask(self.rng.choice(self.smalltalk), first=False)
            return self.ask(self.next_topic(), first=last is None)
        if last.topic is None or kind < 0.58:
            return self.story() if self.rng.random() < 0.5 else self.ask(self.next_topic(), first=False)
        return self.follow_up(last, last.topic)

    def follow_up(self, last: Turn, topic: Topic) -> Turn:
        kind = self.rng.choices(["more", "why", "again"], [6, 5 if topic.why else 1, 2])[0]
        question = self.variation.surface(self.rng.choice(self.follow_ups[kind]))
        return Turn(question, follow_up_answer(self.corpus, topic, kind, last.answer), topic)

    def ask(self, topic: Topic, *, first: bool = True) -> Turn:
        if topic is self.no_context and not first:
            topic = self.next_topic()  # "tell me more" has a meaning there
        written = [line for line in topic.train if line.written]
        pool = written if written and self.rng.random() < WRITTEN_SHARE else topic.train
        text = self.rng.choice(pool).text
        return Turn(self.variation.vary(text), topic.answer, topic)

    def story(self) -> Turn:
        story = make_story(self.rng)
        return Turn(self.variation.surface(story.question), story.text, None, story_segments(story))

    def next_topic(self) -> Topic:
        if not self.round:
            self.round = [topic for topic in self.corpus.topics for _ in range(topic.weight)]
            self.rng.shuffle(self.round)
        return self.round.pop()


def story_segments(story: Story) -> list[Segment]:
    """The story with more weight on names and pronouns that are settled by what was said before."""
    words = "|".join(map(re.escape, story.cast))
    known = story.question
    segments: list[Segment] = []
    for piece in re.split(rf"(?i)( (?:{words})\b)", story.text):
        agreed = piece.startswith(" ") and piece.strip() in story.cast and piece.strip() in known.split()
        segments.append(Segment(piece, AGREEMENT_WEIGHT if agreed else STORY_WEIGHT))
        known += " " + re.sub(r"\W", " ", piece)
    return segments


def follow_up_answer(corpus: Corpus, topic: Topic, kind: str, last_answer: str) -> str:
    """The right answer to a follow-up after `last_answer` on `topic`; nothing more is known after `more` was told."""
    if kind == "again":
        return last_answer
    if topic.smalltalk and topic.more is None:
        return corpus.topic(NO_CONTEXT).answer
    if kind == "why":
        return topic.why or str(corpus.phrasing["no_why"])
    return topic.more if topic.more and last_answer != topic.more else str(corpus.phrasing["no_more"])
