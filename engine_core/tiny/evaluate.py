"""Asks the built-in model the held-out questions: `python -m engine_core.tiny.evaluate [--model DIR] [--dtype ...]`.

Right means letter-perfect: greedy decoding gives exactly the topic's answer and then an end-of-sequence token,
nothing else counts. Prints the share for templated and for hand-written held-out phrasings, for a newcomer's questions
(`data/newcomer.toml`) and for follow-ups, and some failures. Exit code 1 if under 90 % of all held-out phrasings are
right in any number format tried. Knows nothing of how the model was trained.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine_core.tiny import MODEL_PATH
from engine_core.tiny.conversations import follow_up_answer
from engine_core.tiny.corpus import Corpus, load_corpus

REQUIRED_SHARE: Final = 0.9
BATCH_SIZE: Final = 128
MAX_NEW_TOKENS: Final = 160
HELD_OUT: Final = ("templated", "hand-written")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """A chat that ends with a question, the only right answer, and the group it is counted in."""

    messages: tuple[Message, ...]
    answer: str
    group: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, and whether it ended by itself."""

    text: str
    ended: bool


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def question_cases(corpus: Corpus) -> list[Case]:
    """Every held-out phrasing of every topic, as it is written in the data."""
    return [
        Case((user(line.text),), topic.answer, "hand-written" if line.written else "templated")
        for topic in corpus.topics
        for line in topic.held_out
    ]


def newcomer_cases(corpus: Corpus) -> list[Case]:
    """Questions that were written apart from the topics, none of them among the trained phrasings."""
    return [
        Case((user(line),), corpus.topic(topic_id).answer, "newcomer")
        for topic_id, lines in corpus.newcomer.items()
        for line in lines
    ]


def follow_up_cases(corpus: Corpus) -> list[Case]:
    """A trained question, its answer, then a held-out "tell me more" or "why?", where the topic can add something."""
    cases: list[Case] = []
    for number, topic in enumerate(corpus.topics):
        opening = (user(topic.train[0].text), {"role": "assistant", "content": topic.answer})
        for kind, told in (("more", topic.more), ("why", topic.why)):
            if told:
                phrasings = corpus.follow_ups(kind, held_out=True)
                question = user(phrasings[number % len(phrasings)])
                answer = follow_up_answer(corpus, topic, kind, topic.answer)
                cases.append(Case((*opening, question), answer, "follow-up"))
    return cases


class Oracle:
    """The model in one number format, answering many chats at once."""

    def __init__(self, path: Path, dtype: torch.dtype | str, temperature: float = 0.0) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        self.choice: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature:
            self.choice["temperature"] = temperature

    def complete(self, prompts: Sequence[str]) -> list[Reply]:
        """Replies to raw prompts, in order."""
        replies: dict[int, Reply] = {}
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            inputs = self.tokenizer([prompts[index] for index in chosen], return_tensors="pt", padding=True)
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **self.choice)
            for index, row in zip(chosen, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                replies[index] = self._reply(row)
        return [replies[index] for index in range(len(prompts))]

    def answer(self, chats: Sequence[Sequence[Message]]) -> list[Reply]:
        render = self.tokenizer.apply_chat_template
        return self.complete([render(list(chat), tokenize=False, add_generation_prompt=True) for chat in chats])

    def _reply(self, tokens: list[int]) -> Reply:
        ends = set(self.model.generation_config.eos_token_id)
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return Reply(self.tokenizer.decode(tokens[:length]), ended=length < len(tokens))


def report(name: str, cases: Sequence[Case], replies: Sequence[Reply], failures: int) -> float:
    """Print the figures of one number format and some failures; returns the share of questions answered right."""
    right = [reply.ended and reply.text == case.answer for case, reply in zip(cases, replies, strict=True)]
    ended = sum(reply.ended for reply in replies)
    for group in ("templated", "hand-written", "newcomer", "follow-up"):
        marks = [mark for case, mark in zip(cases, right, strict=True) if case.group == group]
        print(f"{name}: {group:12} {sum(marks):5} of {len(marks):5} right = {sum(marks) / len(marks):6.1%}")
    asked = [mark for case, mark in zip(cases, right, strict=True) if case.group in HELD_OUT]
    share = sum(asked) / len(asked)
    print(f"{name}: held-out questions {sum(asked)} of {len(asked)} letter-perfect = {share:.1%}")
    print(f"{name}: {ended} of {len(cases)} replies ended with an end-of-sequence token")
    wrong = [(case, reply) for case, reply, mark in zip(cases, replies, right, strict=True) if not mark]
    for case, reply in wrong[:: max(1, len(wrong) // max(1, failures))][:failures]:
        print(f"  asked:  {case.messages[-1]['content']} ({case.group})")
        print(f"  said:   {reply.text}\n  wanted: {case.answer}")
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure tokenwire-tiny on its held-out questions.")
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "both"], default="both")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--failures", type=int, default=8, help="how many failures to show")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    corpus = load_corpus()
    cases = question_cases(corpus) + newcomer_cases(corpus) + follow_up_cases(corpus)
    print(f"{len(corpus.topics)} topics, {sum(len(topic.train) for topic in corpus.topics)} phrasings trained")
    shares = []
    for name in ["float32", "bfloat16"] if options.dtype == "both" else [options.dtype]:
        oracle = Oracle(options.model, getattr(torch, name), options.temperature)
        replies = oracle.answer([case.messages for case in cases])
        shares.append(report(name, cases, replies, options.failures))
    return 0 if min(shares) >= REQUIRED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
