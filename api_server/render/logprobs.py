"""Log probabilities in OpenAI's two shapes. JSON has no infinity, so -9999 stands for minus infinity, as in vLLM."""

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
    rendered = CompletionLogprobs([base + offset for offset in piece.offsets], [], [], [])
    for token, entry in zip(piece.tokens, piece.logprobs, strict=True):
        text = _text(vocabulary.spell(token))
        chosen = max(entry.logprob, LOWEST)
        rendered.tokens.append(text)
        rendered.token_logprobs.append(chosen)
        top: dict[str, float] = {}
        for alternative, logprob in _alternatives(entry):
            # Several tokens may look alike (parts of characters); the likeliest comes first and is kept.
            top.setdefault(_text(vocabulary.spell(alternative)), logprob)
        rendered.top_logprobs.append({text: chosen} | top if token not in entry.top_ids else top)
    return rendered


def _alternatives(entry: TokenLogprobs) -> list[tuple[int, float]]:
    return [(token, max(logprob, LOWEST)) for token, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)]


def _named(vocabulary: Vocabulary, token: int, logprob: float) -> tuple[str, float, list[int]]:
    data = vocabulary.spell(token)
    return _text(data), max(logprob, LOWEST), list(data)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
