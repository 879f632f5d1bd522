"""Text to token ids, off the event loop where it takes long."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from tokenizers import Tokenizer

from api_server.errors import ApiError
from protocol.messages import ModelCard

INLINE_CHARS: Final = 10_000  # characters, or tokens, that take some milliseconds; more go to a thread
# Threads for more than that. Each has moments when it holds the interpreter's lock for some milliseconds, for a
# megabyte of text, and these add up if they meet; two of them tokenise as much as an engine on one machine can take in.
THREADS: Final = 2
SLACK: Final = 4  # characters that a normalizer may fold into one

T = TypeVar("T")


class Encoder:
    """One model's tokenizer. Of tokenizers' methods only those for batches release the interpreter's lock."""

    def __init__(self, card: ModelCard) -> None:
        self.tokenizer: Final = Tokenizer.from_buffer(card.tokenizer) if card.tokenizer else None
        vocabulary = {} if self.tokenizer is None else self.tokenizer.get_vocab()
        self._longest_token: Final = max(map(len, vocabulary), default=1)
        self._max_tokens: Final = card.max_model_len

    @property
    def max_chars(self) -> int:
        """No text longer than this fits the model's context, whatever it says."""
        return self._max_tokens * self._longest_token * SLACK

    async def encode(self, texts: Sequence[str], *, add_special: bool, param: str = "prompt") -> list[list[int]]:
        """Token ids of each text. Raises ApiError for a text that can't fit, before it is tokenised."""
        longest = max(map(len, texts), default=0)
        if longest > self.max_chars:
            raise ApiError(
                "context_length_exceeded",
                f"This model's maximum context length is {self._max_tokens} tokens, and a text of {longest} characters "
                "is longer than that.",
                param,
            )
        return await off_loop(sum(map(len, texts)), lambda: self.encode_now(texts, add_special=add_special))

    def encode_now(self, texts: Sequence[str], *, add_special: bool) -> list[list[int]]:
        """The same, here and now. Raises ApiError for a model that has no tokenizer."""
        if self.tokenizer is None:
            raise ApiError("invalid_request_error", "This model has no tokenizer: send token ids.", "prompt")
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special)
        return [encoding.ids for encoding in encodings]


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Does the work here if it is about few characters or tokens, else in one of the loop's threads. Also worth it for
    what holds the interpreter's lock all the time: the loop has its turn before it and after it."""
    return work() if size <= INLINE_CHARS else await asyncio.to_thread(work)
