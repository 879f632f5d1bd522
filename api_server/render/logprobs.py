"""Log probabilities of outputs in OpenAI's two shapes. JSON has no infinity, so -9999 stands for minus infinity, as in
vLLM.

Those of a whole answer may be a million objects: there they are made of one span of its tokens after the other.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from api_server.detokenize import Vocabulary
from api_server.render.long import LongLists, elements
from api_server.schema.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from api_server.text import Piece
from protocol.messages import TokenLogprobs

LOWEST: Final = -9999.0
SPAN: Final = 50  # tokens, which with all their alternatives take some milliseconds


def spans(piece: Piece) -> Iterator[Piece]:
    """Of a piece with log probabilities all but its text, a few tokens at a time."""
    for start in range(0, len(piece.tokens), SPAN):
        part = slice(start, start + SPAN)
        logprobs, offsets = (piece.logprobs or [])[part], (piece.offsets or [])[part]
        yield replace(piece, texts=[], rest="", tokens=piece.tokens[part], logprobs=logprobs, offsets=offsets)


# ------------------------------------------------------------------------------------------------ chat completions


def chat_logprobs(piece: Piece, vocabulary: Vocabulary) -> ChatLogprobs | None:
    """None if no log probabilities were asked for."""
    return None if piece.logprobs is None else ChatLogprobs(_content(piece, vocabulary))


def long_chat_logprobs(piece: Piece, vocabulary: Vocabulary, lists: LongLists) -> ChatLogprobs | None:
    """The same for a body made of `lists`."""
    if piece.logprobs is None:
        return None
    return ChatLogprobs(lists.add(elements(_content(span, vocabulary)) for span in spans(piece)))


def _content(piece: Piece, vocabulary: Vocabulary) -> list[TokenLogprob]:
    content = []
    for token, entry in _measured(piece):
        top = [TopLogprob(*_named(vocabulary, alternative, logprob)) for alternative, logprob in _alternatives(entry)]
        content.append(TokenLogprob(*_named(vocabulary, token, entry.logprob), top))
    return content


def _alternatives(entry: TokenLogprobs) -> Iterator[tuple[int, float]]:
    return zip(entry.top_ids, entry.top_logprobs, strict=True)


def _named(vocabulary: Vocabulary, token: int, logprob: float) -> tuple[str, float, list[int]]:
    piece = vocabulary.piece(token)
    return name(vocabulary, token), reported(logprob), list(piece.encode() if isinstance(piece, str) else piece)


# ------------------------------------------------------------------------------------------------ completions


def completion_logprobs(piece: Piece, vocabulary: Vocabulary, base: int) -> CompletionLogprobs | None:
    """None if no log probabilities were asked for. `base` is the length of the text before the output's own (echo), in
    characters."""
    if piece.logprobs is None:
        return None
    return CompletionLogprobs(
        offsets(piece, base), likelihoods(piece), names(piece, vocabulary), tops(piece, vocabulary)
    )


def offsets(piece: Piece, base: int) -> list[int]:
    return [base + offset for offset in piece.offsets or ()]


def likelihoods(piece: Piece) -> list[float | None]:
    return [reported(entry.logprob) for _, entry in _measured(piece)]


def names(piece: Piece, vocabulary: Vocabulary) -> list[str]:
    return [name(vocabulary, token) for token in piece.tokens]


def tops(piece: Piece, vocabulary: Vocabulary) -> list[dict[str, float] | None]:
    return [
        named_tops(vocabulary, token, entry.logprob, entry.top_ids, entry.top_logprobs)
        for token, entry in _measured(piece)
    ]


# ------------------------------------------------------------------------------------------------ both, and prompts


def named_tops(
    vocabulary: Vocabulary, token: int, logprob: float, top_ids: Sequence[int], top_logprobs: Sequence[float]
) -> dict[str, float]:
    """The alternatives of one position by what they say, the token itself among them."""
    top: dict[str, float] = {} if token in top_ids else {name(vocabulary, token): reported(logprob)}
    # Several tokens may look alike (parts of characters); the likeliest comes first and is kept.
    found: dict[str, float] = {}
    for alternative, likelihood in zip(top_ids, top_logprobs, strict=True):
        found.setdefault(name(vocabulary, alternative), reported(likelihood))
    return top | found


def name(vocabulary: Vocabulary, token: int) -> str:
    """What a token says by itself, special ones too."""
    piece = vocabulary.piece(token)
    return piece if isinstance(piece, str) else piece.decode(errors="replace")


def reported(logprob: float) -> float:
    return max(logprob, LOWEST)


def _measured(piece: Piece) -> Iterator[tuple[int, TokenLogprobs]]:
    return zip(piece.tokens, piece.logprobs or (), strict=True)
