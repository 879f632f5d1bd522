"""Log probabilities of outputs in OpenAI's two shapes. JSON has no infinity, so -9999 stands for minus infinity, as in
vLLM."""

from collections.abc import Sequence
from typing import Final

from api_server.detokenize import Vocabulary
from api_server.schema.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from api_server.text import Piece
from protocol.messages import TokenLogprobs

LOWEST: Final = -9999.0


def chat_logprobs(piece: Piece, vocabulary: Vocabulary) -> ChatLogprobs | None:
    """The shape of chat completions; None if no log probabilities were asked for."""
    if piece.logprobs is None:
        return None
    content = []
    for token, entry in zip(piece.tokens, piece.logprobs, strict=True):
        top = [TopLogprob(*_named(vocabulary, alternative, logprob)) for alternative, logprob in _alternatives(entry)]
        content.append(TokenLogprob(*_named(vocabulary, token, entry.logprob), top))
    return ChatLogprobs(content)


def completion_logprobs(piece: Piece, vocabulary: Vocabulary, base: int) -> CompletionLogprobs | None:
    """The shape of completions. `base` is the length of the text before the output's own (echo), in characters."""
    if piece.logprobs is None or piece.offsets is None:
        return None
    return CompletionLogprobs(
        [base + offset for offset in piece.offsets],
        [reported(entry.logprob) for entry in piece.logprobs],
        [name(vocabulary, token) for token in piece.tokens],
        [
            named_tops(vocabulary, token, entry.logprob, entry.top_ids, entry.top_logprobs)
            for token, entry in zip(piece.tokens, piece.logprobs, strict=True)
        ],
    )


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


def _alternatives(entry: TokenLogprobs) -> list[tuple[int, float]]:
    return list(zip(entry.top_ids, entry.top_logprobs, strict=True))


def _named(vocabulary: Vocabulary, token: int, logprob: float) -> tuple[str, float, list[int]]:
    piece = vocabulary.piece(token)
    return name(vocabulary, token), reported(logprob), list(piece.encode() if isinstance(piece, str) else piece)
