"""Grammars put to the test: what they let through, token by token, and sentences that are made with nothing else."""

import json
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from llguidance import LLMatcher
from tokenizers import Tokenizer

from engine_core.grammar.compiler import Compiler, Refused
from protocol.sampling import Grammar

TINY = Path(__file__).resolve().parents[3] / "engine_core/tiny/model/tokenizer.json"
LONG = 60  # tokens after which a sentence tries to come to its end


class Vocabulary:
    """The built-in model's tokens, and `added` ones."""

    def __init__(self, added: Iterable[str]) -> None:
        self.added = frozenset(added)
        description = json.loads(TINY.read_text())
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        first = max(description["model"]["vocab"].values()) + 1
        for i, content in enumerate(sorted(self.added)):
            description["added_tokens"].append({"id": first + i, "content": content, **plain})
        text = json.dumps(description)
        self.tokenizer = Tokenizer.from_str(text)
        self._compiler = Compiler(text, self.tokenizer.get_vocab_size(), [])
        self.eos = self._compiler.eos_token_ids[0]
        quote = [token for token, id_ in sorted(self.tokenizer.get_vocab().items()) if token in ('"', "}", "]", ")")]
        self.closing = [self.tokenizer.token_to_id(token) for token in quote]

    def matcher(self, grammar: Grammar) -> LLMatcher:
        return self._compiler.compile(grammar)

    def error(self, grammar: Grammar) -> str:
        """Why the grammar does not compile."""
        try:
            self._compiler.compile(grammar)
        except Refused as refused:
            return str(refused)
        return ""

    def begins(self, grammar: Grammar, text: str) -> bool:
        """Whether a sentence may begin like this."""
        tokens = self.tokenizer.encode(text).ids
        return self.matcher(grammar).try_consume_tokens(tokens) == len(tokens)

    def accepts(self, grammar: Grammar, text: str) -> bool:
        """Whether the text is a sentence."""
        tokens = self.tokenizer.encode(text).ids
        matcher = self.matcher(grammar)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    def sentence(self, grammar: Grammar, seed: int, most: int = 1000) -> str | None:
        """Random tokens under the grammar's mask until it is content; None if that takes more than `most`."""
        matcher, draw = self.matcher(grammar), random.Random(seed)
        tokens: list[int] = []
        while len(tokens) < most:
            mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = np.flatnonzero(mask)
            assert len(allowed), matcher.get_error()
            if self.eos in allowed and (len(allowed) == 1 or draw.random() < 0.5 or len(tokens) > LONG):
                return self.tokenizer.decode(tokens, skip_special_tokens=False)
            closing = [token for token in self.closing if mask[token]] if len(tokens) > LONG else []
            token = draw.choice(closing or [token for token in allowed.tolist() if token != self.eos])
            tokens.append(token)
            assert matcher.consume_token(token), matcher.get_error()
        return None


@cache
def vocabulary(*added: str) -> Vocabulary:
    return Vocabulary(added)
