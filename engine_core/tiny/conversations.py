"""Training documents: chats of one or many turns, raw questions, plain prose and stories, drawn without end from one
seed.

A document is a list of (text, weight) segments; the weight is how much each token of the segment counts in the loss.
The text of a chat is exactly what the chat template renders. Knows the corpus and the template's special tokens,
nothing of ids or torch.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from engine_core.tiny.corpus import NO_CONTEXT, Corpus, Topic
from engine_core.tiny.stories import make_story
from engine_core.tiny.tokenizer import END_OF_TEXT, IM_END, IM_START
from engine_core.tiny.variation import Variation

Segment = tuple[str, float]
Document = list[Segment]

QUESTION_WEIGHT = 0.1  # predicting questions a little teaches which words mean the same


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer; `topic` is what a follow-up refers to, None after a story."""

    question: str
    answer: str
    topic: Topic | None


class Conversations:
    """Draws documents. Topics come in shuffled rounds, so that each is seen as often as its weight says."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.variation = Variation(corpus, self.rng)
        self.follow_ups = {kind: corpus.follow_ups(kind, held_out=False) for kind in ("more", "why", "again")}
        self.no_context = corpus.topic(NO_CONTEXT)
        self.round: list[Topic] = []

    def documents(self) -> Iterator[Document]:
        rng = self.rng
        while True:
            kind = rng.random()
            if kind < 0.66:
                yield self.chat(1)
            elif kind < 0.83:
                yield self.chat(rng.choice([2, 2, 2, 2, 3, 3, 5]))
            elif kind < 0.832:
                yield self.chat(rng.randrange(8, 24))
            elif kind < 0.86:
                yield self.raw_question()
            elif kind < 0.88:
                yield self.prose(self.next_topic().answer)
            elif kind < 0.91:
                yield self.stuck()
            else:
                yield self.prose(make_story(rng).text)

    def chat(self, turns: int) -> Document:
        """A conversation as the chat template renders it; only the assistant's words count fully."""
        document: Document = []
        if self.rng.random() < 0.3:
            system = " ".join(self.rng.sample(self.corpus.phrasing["system"], self.rng.choice([1, 1, 1, 2, 3])))
            document.append((f"{IM_START}system\n{system}{IM_END}\n", 0.0))
        last: Turn | None = None
        for _ in range(turns):
            last = self.next_turn(last)
            document.append((f"{IM_START}user\n", 0.0))
            document.append((last.question, QUESTION_WEIGHT))
            document.append((f"{IM_END}\n{IM_START}assistant\n", 0.0))
            document.append((f"{last.answer}{IM_END}", 1.0))
            document.append(("\n", 0.0))
        return document

    def raw_question(self) -> Document:
        """A question without any template, as in a plain completion."""
        turn = self.ask(self.next_topic())
        question, answer = self.rng.choice([("{}\n", "{}"), ("Q: {}\nA:", " {}"), ("{}\n\n", "{}")])
        return [(question.format(turn.question), 0.0), (answer.format(turn.answer) + END_OF_TEXT, 1.0)]

    def prose(self, text: str) -> Document:
        """Plain text that ends with the end-of-text token and begins with it every other time."""
        beginning: Document = [(END_OF_TEXT, 0.0)] if self.rng.random() < 0.5 else []
        return [*beginning, (text + END_OF_TEXT, 1.0)]

    def stuck(self) -> Document:
        """The beginning of some text, or words in no order, and the admission that the model cannot go on with it."""
        words = " ".join(
            self.rng.choice(self.next_topic().train).text.split()[-1] for _ in range(self.rng.randrange(1, 6))
        )
        opening = self.rng.choice(self.corpus.phrasing["openings"])
        text = self.rng.choice([opening, f"{opening} {words}", words])
        return [(text, 0.0), (str(self.corpus.phrasing["stuck"]) + END_OF_TEXT, 1.0)]

    def next_turn(self, last: Turn | None) -> Turn:
        kind = self.rng.random()
        if last is None or kind < 0.5:
            if self.rng.random() < 0.06:
                return self.story()
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
        pool = written if written and self.rng.random() < 0.5 else topic.train
        text = self.rng.choice(pool).text
        return Turn(self.variation.vary(text), topic.answer, topic)

    def story(self) -> Turn:
        story = make_story(self.rng)
        return Turn(self.variation.surface(story.question), story.text, None)

    def next_topic(self) -> Topic:
        if not self.round:
            self.round = [topic for topic in self.corpus.topics for _ in range(topic.weight)]
            self.rng.shuffle(self.round)
        return self.round.pop()


def follow_up_answer(corpus: Corpus, topic: Topic, kind: str, last_answer: str) -> str:
    """The right answer to a follow-up after `last_answer` on `topic`; nothing more is known after `more` was told."""
    if kind == "again":
        return last_answer
    if topic.smalltalk and topic.more is None:
        return corpus.topic(NO_CONTEXT).answer
    if kind == "why":
        return topic.why or str(corpus.phrasing["no_why"])
    return topic.more if topic.more and last_answer != topic.more else str(corpus.phrasing["no_more"])
