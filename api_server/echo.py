"""Prompts as they are repeated before a completion: their texts and, to go with log probabilities, where in these each
token begins."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from api_server.detokenize import Vocabulary
from api_server.encode import off_loop


class Echo(NamedTuple):
    """One text per prompt. `offsets` are those of its tokens, in characters; None where nobody asked."""

    texts: tuple[str, ...]
    offsets: tuple[Sequence[int], ...] | None = None


async def echo_of_texts(tokenizer: Tokenizer | None, texts: Sequence[str], *, measured: bool) -> Echo:
    """`measured` asks for offsets. The texts have been found to fit, and are repeated as they came; special tokens that
    the tokenizer puts around them take no place."""
    if tokenizer is None or not measured:
        return Echo(tuple(texts))

    def measure() -> tuple[Sequence[int], ...]:
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return tuple(_begins(encoding.offsets) for encoding in encodings)

    return Echo(tuple(texts), await off_loop(sum(map(len, texts)), measure))


async def echo_of_ids(vocabulary: Vocabulary, prompts: Sequence[Sequence[int]], *, measured: bool) -> Echo:
    """What the tokens say, special ones included, as if nothing were before or after them."""
    decoded = await off_loop(sum(map(len, prompts)), lambda: [_decoded(vocabulary, prompt) for prompt in prompts])
    texts = tuple(text for text, _ in decoded)
    return Echo(texts, tuple(offsets for _, offsets in decoded) if measured else None)


def _decoded(vocabulary: Vocabulary, prompt: Sequence[int]) -> tuple[str, list[int]]:
    detokenizer = vocabulary.detokenizer((), skip_special=False)
    offsets, pieces, length = [], [], 0
    for token in prompt:
        offsets.append(length)
        piece = detokenizer.step(token)
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces) + detokenizer.flush(), offsets


def _begins(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Where tokens begin, from the characters that the tokenizer says they are made of. Spaces that it counts to no
    token belong to the one behind them; tokens that share a character begin where it does; one without characters is
    where it stands between the others."""
    begins = []
    end = 0
    for first, last in spans:
        begins.append(min(first, end) if last > first else end)
        end = max(end, last)
    return begins
