"""How the next token of a request is chosen: one frozen struct, the same on both sides of the wire.

Ranges are part of the types, so decoding is the validation; what depends on the model (ids within the vocabulary, room
in the context) is in `protocol.validate`. Knows nothing of tensors, text or HTTP.
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_BAD_WORDS = 64
MAX_GRAMMAR_SIZE = 64 << 10  # bytes of UTF-8
# Where JSON allows whitespace, a grammar for it allows a blank, or a new line with its indentation, once: with any
# amount a model could write blanks to the end of its context. llguidance's `whitespace_pattern`.
JSON_WHITESPACE = r"[ \t]|\n[ \t]{0,16}"

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]


class GrammarKind(IntEnum):
    """The language that a grammar is written in."""

    JSON_SCHEMA = 0
    REGEX = 1
    CHOICE = 2  # a JSON array of texts, one of which is the output
    LARK = 3  # llguidance's dialect of Lark


class Grammar(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What the output must be a sentence of, from its first token to its last. `param` is the field of the client's
    request that it was made of, for a refusal to name. With a `frame`, which is LARK, it is not `text` alone that the
    output must match, but the frame's `start`, to which `text` is the rule `answer`."""

    kind: GrammarKind
    text: Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_SIZE)]
    param: Annotated[str, Meta(max_length=64)] = "structured_outputs"
    frame: Annotated[str, Meta(max_length=MAX_GRAMMAR_SIZE)] = ""


class SamplingParams(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """OpenAI's and vLLM's sampling parameters, resolved: nothing here is "left to the server" any more.

    `temperature` 0 is greedy and ignores `top_p`, `top_k` and `min_p`; `top_k` 0 and `top_p` 1 are off. Penalties
    follow vLLM: repetition over prompt and output, presence and frequency over the output alone. `logprobs` and
    `prompt_logprobs` are the number of alternatives beside the chosen token; None is off. Stop strings are not here:
    they are text, and text is the frontend's.
    """

    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)]
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Count = 0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    min_tokens: Count = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKEN_IDS)] = ()
    logit_bias: Annotated[tuple[tuple[TokenId, Bias], ...], Meta(max_length=MAX_LOGIT_BIAS)] = ()
    allowed_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_LOGIT_BIAS)] | None = None
    bad_words: Annotated[tuple[tuple[TokenId, ...], ...], Meta(max_length=MAX_BAD_WORDS)] = ()
    logprobs: TopLogprobs | None = None
    prompt_logprobs: TopLogprobs | None = None
    grammar: Grammar | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """True if the distribution depends on the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
