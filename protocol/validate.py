"""What a well-formed request may still get wrong for this model. The frontend asks before it sends, the engine asks
again before it queues: the same function, so neither trusts the other."""

from collections.abc import Sequence

from protocol.messages import Generate, Limits, ModelCard
from protocol.sampling import MAX_GRAMMAR_SIZE, Grammar, SamplingParams
from protocol.tokens import TOKEN_BYTES

MAX_TOTAL_TOKENS = 65_536  # sum of max_tokens over the sequences of one request
MAX_PROMPT_LOGPROBS = 1 << 22  # of one request, told for each of its sequences: some 50 MB on either side of the wire


class InvalidRequest(ValueError):
    """The request can never run. `param` is the OpenAI field at fault."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def check(request: Generate, card: ModelCard, limits: Limits, highest: Sequence[int]) -> None:
    """`highest` is the largest token id of each prompt, which either side finds in the way that is cheapest there.
    Raises InvalidRequest."""
    check_sampling(request.sampling, card.vocab_size)
    check_room(request, card, limits, highest)
    handles = set()
    for sequence in request.sequences:
        if sequence.prompt >= len(request.prompts):
            raise InvalidRequest("a sequence names a prompt that is not there", "prompt")
        if len(sequence.out) >= request.sampling.max_tokens:
            raise InvalidRequest("a replayed sequence has nothing left to generate", "max_tokens")
        if sequence.out and max(sequence.out) >= card.vocab_size:
            raise InvalidRequest("a replayed token id is out of the vocabulary", "prompt")
        handles.add(sequence.handle)
    if len(handles) != len(request.sequences):
        raise InvalidRequest("two sequences share a handle", "n")
    check_prompt_logprobs(request)


def room(card: ModelCard, limits: Limits) -> int:
    """Tokens that a prompt and its output may have together: the context, or what the cache holds if that is less. A
    sequence's last token is never fed back, so it needs no place there; whole blocks are what is allotted."""
    return min(card.max_model_len, limits.kv_tokens // limits.block_size * limits.block_size + 1)


def check_room(request: Generate, card: ModelCard, limits: Limits, highest: Sequence[int]) -> None:
    """Prompt and output must fit the context and the KV cache; ids must fit the vocabulary."""
    max_tokens = request.sampling.max_tokens
    available = room(card, limits)
    for prompt, token in zip(request.prompts, highest, strict=True):
        length, cut = divmod(len(prompt), TOKEN_BYTES)
        if cut:
            raise InvalidRequest("a prompt ends in the middle of a token id", "prompt")
        if length + max_tokens > available:
            raise InvalidRequest(
                f"This model's maximum context length is {available} tokens. However, you requested "
                f"{length + max_tokens} tokens ({length} in the prompt, {max_tokens} for the completion).",
                "max_tokens" if length < available else "prompt",
                "context_length_exceeded",
            )
        if token >= card.vocab_size:
            raise InvalidRequest(f"token id {token} is not below the vocabulary size {card.vocab_size}", "prompt")
    total = max_tokens * len(request.sequences)
    if total > MAX_TOTAL_TOKENS:
        raise InvalidRequest(
            f"max_tokens over all prompts and choices is {total}, at most {MAX_TOTAL_TOKENS}", "max_tokens"
        )


def check_prompt_logprobs(request: Generate) -> None:
    """They are as many as the prompts' tokens times what is asked for of each."""
    top = request.sampling.prompt_logprobs
    if top is None:
        return
    total = (1 + top) * sum(len(request.prompts[sequence.prompt]) // TOKEN_BYTES for sequence in request.sequences)
    if total > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"The log probabilities of all prompts and choices are {total} with {top} alternatives for each token, at "
            f"most {MAX_PROMPT_LOGPROBS}.",
            "prompt_logprobs",
        )


def check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    """Token ids within the vocabulary, and limits that do not contradict each other."""
    if sampling.min_tokens > sampling.max_tokens:
        raise InvalidRequest(
            f"min_tokens {sampling.min_tokens} is above max_tokens {sampling.max_tokens}", "min_tokens"
        )
    named = {
        "stop_token_ids": sampling.stop_token_ids,
        "logit_bias": [token for token, _ in sampling.logit_bias],
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "bad_words": [token for word in sampling.bad_words for token in word],
    }
    for param, ids in named.items():
        if any(token >= vocab_size for token in ids):
            raise InvalidRequest(f"token id {max(ids)} is not below the vocabulary size {vocab_size}", param)
    if sampling.allowed_token_ids is not None and not sampling.allowed_token_ids:
        raise InvalidRequest("allowed_token_ids is empty: no token could be chosen", "allowed_token_ids")
    if any(not word for word in sampling.bad_words):
        raise InvalidRequest("a bad word is empty", "bad_words")
    if sampling.grammar is not None:
        check_grammar(sampling.grammar)


def check_grammar(grammar: Grammar) -> None:
    """Its size. Whether it can be compiled is the engine's to find out."""
    try:
        size = max(len(grammar.text.encode()), len(grammar.frame.encode()))
    except UnicodeEncodeError:
        raise InvalidRequest("The grammar holds half of a surrogate pair.", grammar.param) from None
    if size > MAX_GRAMMAR_SIZE:
        raise InvalidRequest(f"The grammar has {size} bytes, at most {MAX_GRAMMAR_SIZE}.", grammar.param)
