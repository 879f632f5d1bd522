"""Token ids to text, one token at a time.

Nearly all tokenizers write text in one of two ways: tokens that spell bytes (byte-level BPE), or pieces of text with a
mark for spaces and single bytes as a fallback (sentencepiece). Both are a fixed string of bytes per token, so a text is
the bytes joined and decoded as UTF-8: exact for every split, no look-back, and a fraction of the cost of decoding again
and again. Any other decoder is asked about a short window of tokens.

Output continues its prompt: a space that a decoder drops at the start of a text is kept, unless the prompt
shows nothing. Bytes that are no UTF-8 become U+FFFD, as Python and the Unicode standard replace them; an unfinished
character is held back, and becomes U+FFFD only if the output ends there. Knows nothing of stop strings or HTTP.
"""

import codecs
from collections.abc import Sequence
from typing import Any, Final, Protocol

from tokenizers import Tokenizer

from api_server.spelling import spelling_of

REPLACEMENT: Final = "\ufffd"
WINDOW: Final = 8  # tokens without a complete character after which a window decoder shows what it has


class Detokenizer(Protocol):
    """One sequence's text so far. `step` returns what a token adds to it, `flush` what was held back at its end."""

    def step(self, token: int) -> str: ...

    def flush(self) -> str: ...


class Vocabulary:
    """What every token of one tokenizer says. Spellings are worked out when a token is first seen, and kept."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        """Without a tokenizer every text is empty."""
        self._tokenizer: Final = tokenizer
        self._spelling: Final = None if tokenizer is None else spelling_of(tokenizer)
        self._pieces: dict[int, str | bytes] = {}  # text where a token is valid UTF-8 by itself, else its bytes
        added = {} if tokenizer is None else tokenizer.get_added_tokens_decoder()
        self.special: Final = frozenset(token for token, content in added.items() if content.special)
        self.added: Final = [(token, content.content, content.special) for token, content in added.items()]

    def detokenizer(
        self, prompt: Sequence[int], *, skip_special: bool, visible: frozenset[int] = frozenset()
    ) -> Detokenizer:
        """For an output that continues `prompt`. `visible` are special tokens that are shown all the same."""
        hidden: frozenset[int] = self.special - visible if skip_special else frozenset()
        if self._tokenizer is None:
            return SilentDetokenizer()
        if self._spelling is None:
            return WindowDetokenizer(self._tokenizer, hidden, [t for t in prompt[-WINDOW:] if t not in hidden])
        starts = self._spelling.first is not None and all(token in hidden for token in prompt)
        return ByteDetokenizer(self, hidden, starts=starts)

    def piece(self, token: int) -> str | bytes:
        """The token's text in the middle of a text, or its bytes where they are no complete UTF-8."""
        piece = self._pieces.get(token)
        if piece is None:
            data = self.spell(token)
            try:
                piece = data.decode()
            except UnicodeDecodeError:
                piece = data
            self._pieces[token] = piece
        return piece

    def spell(self, token: int, *, first: bool = False) -> bytes:
        """The token's bytes; none for an id that the tokenizer does not know (a model's padding)."""
        if self._tokenizer is None:
            return b""
        if self._spelling is None:
            return bytes(self._tokenizer.decode([token], skip_special_tokens=False), "utf-8")
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        return self._spelling.first(text) if first and self._spelling.first else self._spelling.spell(text)


class ByteDetokenizer:
    """For tokens that are fixed strings of bytes."""

    __slots__ = ("_decoder", "_hidden", "_starts", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, hidden: frozenset[int], *, starts: bool) -> None:
        self._vocabulary: Final = vocabulary
        self._hidden: Final = hidden
        self._starts = starts  # the next token is the first of a text
        self._decoder: codecs.BufferedIncrementalDecoder | None = None  # while a character is unfinished

    def step(self, token: int) -> str:
        if token in self._hidden:
            return ""
        if self._starts:
            self._starts = False
            return self._decode(self._vocabulary.spell(token, first=True))
        piece = self._vocabulary.piece(token)
        if isinstance(piece, str):
            return piece if self._decoder is None else self._decode(piece.encode())
        return self._decode(piece)

    def flush(self) -> str:
        if self._decoder is None:
            return ""
        decoder, self._decoder = self._decoder, None
        return decoder.decode(b"", final=True)

    def _decode(self, data: bytes) -> str:
        decoder = self._decoder or _Utf8Decoder("replace")
        text = decoder.decode(data)
        self._decoder = decoder if decoder.buffer else None
        return text


class _Utf8Decoder(codecs.BufferedIncrementalDecoder):
    """The standard library's, by a name that the type checker knows."""

    def _buffer_decode(self, data: Any, errors: str, final: bool) -> tuple[str, int]:
        return codecs.utf_8_decode(data, errors, final)


class WindowDetokenizer:
    """For any other decoder: what a token adds is what it adds to the text of the few tokens before it."""

    __slots__ = ("_hidden", "_read", "_tokenizer", "_tokens")

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], before: Sequence[int]) -> None:
        self._tokenizer: Final = tokenizer
        self._hidden: Final = hidden
        self._tokens = list(before)
        self._read = len(self._tokens)  # of `_tokens`, as many have been shown

    def step(self, token: int) -> str:
        if token in self._hidden:
            return ""
        self._tokens.append(token)
        return self._show(held=len(self._tokens) - self._read < WINDOW)

    def flush(self) -> str:
        return self._show(held=False)

    def _show(self, *, held: bool) -> str:
        before, text = self._decode(self._tokens[: self._read]), self._decode(self._tokens)
        if held and (text.endswith(REPLACEMENT) or len(text) <= len(before)):
            return ""
        self._tokens = self._tokens[self._read :]
        self._read = len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))


class SilentDetokenizer:
    """For a model without a tokenizer: ids in, ids out."""

    __slots__ = ()

    def step(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""
