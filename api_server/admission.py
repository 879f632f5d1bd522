"""From a request struct to a Job: the checks that need the model, in the order of what they cost, and all defaults.

Whatever passes here the engine will accept, short of a full queue: the last check is `protocol.validate`, which the
engine repeats.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final, cast

from api_server import early
from api_server.chat import ChatTemplate, text_of, weight
from api_server.detokenize import Vocabulary
from api_server.echo import Echo, echo_of_ids, echo_of_texts
from api_server.encode import INLINE_CHARS, Encoder, off_loop
from api_server.errors import ApiError
from api_server.grammar import RESPONSE_FORMAT, grammar_of
from api_server.job import Job
from api_server.schema import refusals
from api_server.schema.messages import Message, Scalars
from api_server.schema.requests import ChatRequest, CompletionRequest, GenerationRequest, PlainRequest, TokenizeRequest
from api_server.schema.tools import FunctionDefinition
from api_server.speech import TAIL_TOKENS, Speech
from api_server.submission import Submission
from api_server.tools import Calling, calling_of, describe, functions_of, size_of
from protocol import validate
from protocol.messages import Generate, Limits, ModelCard
from protocol.messages import Sequence as WireSequence
from protocol.sampling import Grammar, SamplingParams

logger: Final = logging.getLogger("tokenwire.admission")

COMPLETION_TOKENS: Final = 16  # OpenAI's default, and those of the two routes of our own
GENERATE_TOKENS: Final = 128
STREAM_TOKENS: Final = 256
GENERATE_TEMPERATURE: Final = 0.7
LEAST_TEMPERATURE: Final = 0.01  # below it, dividing by the temperature overflows before it matters; as in vLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How the routes differ once their prompts are token ids."""

    prefix: str  # of the request id
    max_tokens: int | None  # if the request says nothing; None is the room that is left
    prompt_param: str = "prompt"
    temperature: float | None = None  # if the request says nothing; None is the model's own
    streams: bool = False  # if the request says nothing


CHAT: Final = Route(prefix="chatcmpl-", max_tokens=None, prompt_param="messages")
COMPLETION: Final = Route(prefix="cmpl-", max_tokens=COMPLETION_TOKENS)
GENERATE: Final = Route(prefix="gen-", max_tokens=GENERATE_TOKENS, temperature=GENERATE_TEMPERATURE)
STREAM: Final = Route(prefix="cmpl-", max_tokens=STREAM_TOKENS, streams=True)
RESPONSES: Final = Route(prefix="resp_", max_tokens=None, prompt_param="messages")
MESSAGES: Final = Route(prefix="msg_", max_tokens=None, prompt_param="messages")


class Admission:
    """Admits requests for one model. Building it parses the tokenizer, which takes a while for a large one."""

    def __init__(
        self,
        card: ModelCard,
        limits: Limits,
        *,
        queue_full: Callable[[], bool] = lambda: False,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> None:
        """`queue_full` is what the engine last said. Raises ValueError for a parser that does not exist."""
        self.card: Final = card
        self.limits: Final = limits
        self.queue_full = queue_full
        self.encoder: Final = Encoder(card)
        self.vocabulary: Final = Vocabulary(self.encoder.tokenizer)
        self._fingerprint: Final = (
            "fp_" + blake2b(card.name.encode() + card.tokenizer_digest, digest_size=5).hexdigest()
        )
        self._template: Final = self._chat_template()
        self._speech: Final = Speech(
            card.chat_template, self.vocabulary.added, tool_parser=tool_parser, reasoning_parser=reasoning_parser
        )

    # ------------------------------------------------------------------------------------------------ the routes

    async def chat(self, request: ChatRequest, route: Route = CHAT) -> Job:
        """POST /v1/chat/completions, and what is translated to it. Raises ApiError, like all of these."""
        self._check(request, route)
        refusals.refuse(request, (refusals.CHAT_TEMPLATE,))
        if request.top_logprobs and not request.logprobs:
            raise _bad("top_logprobs needs logprobs to be true.", "top_logprobs")
        calling, wanted = calling_of(request), grammar_of(request)
        if calling is not None and calling.forced and wanted is not None and wanted.param != RESPONSE_FORMAT:
            raise _bad(f"`{wanted.param}` and a call that is forced exclude each other.", wanted.param)
        prompt = await self._prompt(request, calling)
        last = request.messages[-1]
        resumed = text_of(last) if request.continue_final_message else None
        opening = self._speech.opening(self.decode(prompt[-TAIL_TOKENS:]), resumed)
        size = (0 if calling is None else calling.size) + (0 if wanted is None else len(wanted.text))
        grammar = await off_loop(size, lambda: self._speech.grammar(calling, wanted, opening))
        echoes = request.echo and last.role == "assistant"
        job = await self._job(
            request,
            [prompt],
            route,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            echo=Echo((text_of(last) or "",)) if echoes else None,
            grammar=grammar,
        )
        reading = self._speech.reading(calling, opening, hides_special=job.skip_special_tokens)
        job = replace(job, reader=reading.reader, visible=reading.visible)
        return job if calling is None else replace(job, named_call=calling.named, legacy_calls=calling.legacy)

    async def prompt_of(self, request: ChatRequest) -> list[int]:
        """Token ids of all that a chat request shows to the model, its functions included."""
        self.check_model(request.model)
        return await self._prompt(request, calling_of(request))

    async def completion(self, request: CompletionRequest) -> Job:
        """POST /v1/completions."""
        self._check(request, COMPLETION)
        grammar = grammar_of(request)
        texts, ids = await off_loop(len(request.prompt), lambda: _told_apart(request.prompt))
        early.check_count(request, len(texts) + len(ids))
        if request.max_tokens == 0 and not request.echo:
            raise _bad("max_tokens 0 gives the prompt alone, so it needs echo.", "max_tokens")
        prompts = await self.encoder.encode(texts, add_special=True) if texts else ids
        echo, measured = None, request.logprobs is not None
        if request.echo and texts:
            echo = await echo_of_texts(self.encoder.tokenizer, texts, measured=measured)
        elif request.echo:
            echo = await echo_of_ids(self.vocabulary, ids, measured=measured)
        return await self._job(request, prompts, COMPLETION, logprobs=request.logprobs, echo=echo, grammar=grammar)

    async def generate(self, request: PlainRequest) -> Job:
        """POST /generate."""
        return await self._plain(request, GENERATE)

    async def stream(self, request: PlainRequest) -> Job:
        """POST and GET /v1/completions/stream."""
        refusals.refuse(request, refusals.NOT_ON_STREAM_ROUTES)
        return await self._plain(request, STREAM)

    async def tokenize(self, request: TokenizeRequest) -> list[int]:
        """Token ids of POST /tokenize: of a text, or of messages as /v1/chat/completions would see them."""
        self.check_model(request.model)
        refusals.refuse(request, (refusals.CHAT_TEMPLATE,))
        if (request.messages is None) == (request.prompt is None):
            raise _bad("Send either `prompt` or `messages`.", "prompt")
        if request.messages is None:
            special = request.add_special_tokens is not False
            return (await self.encoder.encode([request.prompt or ""], add_special=special))[0]
        return await self.chat_prompt(
            request.messages,
            request.chat_template_kwargs,
            resume=bool(request.continue_final_message),
            generate=request.add_generation_prompt,
            special=bool(request.add_special_tokens),
            functions=functions_of(request.tools or ()),
        )

    async def _plain(self, request: PlainRequest, route: Route) -> Job:
        self._check(request, route)
        refusals.refuse(request, refusals.NOT_ON_PLAIN_ROUTES)
        grammar = grammar_of(request)
        if isinstance(request.prompt, str):
            prompts = await self.encoder.encode([request.prompt], add_special=True)
        else:
            prompts = [request.prompt]
        return await self._job(request, prompts, route, grammar=grammar)

    # ------------------------------------------------------------------------------------------------ the parts

    def _chat_template(self) -> ChatTemplate | None:
        """A template that does not compile closes chat, and nothing else."""
        if self.card.chat_template is None:
            return None
        try:
            return ChatTemplate(self.card.chat_template, self.card.special_tokens, self.encoder.max_chars)
        except ValueError as error:
            logger.error("%s: %s", self.card.name, error)
            return None

    def check_model(self, model: str | None) -> None:
        """A request may leave the model out; what it names must be what is served."""
        if model and model != self.card.name:
            raise ApiError("model_not_found", f"The model `{model}` does not exist.", "model")

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special ones included, as if nothing were before or after them."""
        detokenizer = self.vocabulary.detokenizer((), skip_special=False)
        return "".join(map(detokenizer.step, tokens)) + detokenizer.flush()

    def spell(self, tokens: Sequence[int]) -> list[str]:
        """The tokenizer's own names of token ids."""
        tokenizer = self.encoder.tokenizer
        return [] if tokenizer is None else [tokenizer.id_to_token(token) or "" for token in tokens]

    async def chat_prompt(
        self,
        messages: Sequence[Message],
        kwargs: Scalars | None,
        *,
        resume: bool,
        generate: bool | None,
        special: bool = False,
        functions: Sequence[FunctionDefinition] = (),
    ) -> list[int]:
        """Token ids of a conversation. `generate` is on unless the last message is to be continued."""
        if generate and resume:
            raise _bad("add_generation_prompt and continue_final_message exclude each other.", "add_generation_prompt")
        template = self._template
        if template is None:
            raise _bad("This model has no chat template that works; use /v1/completions.", "messages")
        if len(messages) > self.card.max_model_len:
            raise ApiError("context_length_exceeded", "There are more messages than tokens in the context.", "messages")
        opens = not resume if generate is None else generate
        tools, size = describe(functions), size_of(functions)

        def prompt() -> list[int]:
            text = template.render(messages, kwargs or {}, generate=opens, resume=resume, tools=tools)
            return self.encoder.encode_now([text], add_special=special)[0]

        return await off_loop(weight(messages, INLINE_CHARS) + size, prompt)

    async def _prompt(self, request: ChatRequest, calling: Calling | None) -> list[int]:
        return await self.chat_prompt(
            request.messages,
            request.chat_template_kwargs,
            resume=bool(request.continue_final_message),
            generate=request.add_generation_prompt,
            functions=() if calling is None else calling.functions,
        )

    def _check(self, request: GenerationRequest, route: Route) -> None:
        """What can be refused before the prompt is looked at."""
        self.check_model(request.model)
        refusals.refuse(request, refusals.NOT_SERVED)
        if request.stream_options is not None and not _streams(request, route):
            raise _bad("stream_options is for requests with stream=true.", "stream_options")
        early.check(request, self.card, self.limits, route.max_tokens)
        if self.queue_full():
            raise ApiError("queue_full", "As many requests are waiting as may.")

    async def _job(
        self,
        request: GenerationRequest,
        prompts: list[list[int]],
        route: Route,
        *,
        logprobs: int | None = None,
        echo: Echo | None = None,
        grammar: Grammar | None = None,
    ) -> Job:
        if not all(prompts):
            raise _bad("The prompt is empty.", route.prompt_param)
        n = request.n or 1
        param = "max_completion_tokens" if getattr(request, "max_completion_tokens", None) else "max_tokens"
        prompt_only = request.max_tokens == 0
        max_tokens = getattr(request, param) or (1 if prompt_only else self._default_tokens(route, prompts, n))
        offsets = None if echo is None else echo.offsets
        scored = request.prompt_logprobs if offsets is None else max(request.prompt_logprobs or 0, logprobs or 0)
        submission = Submission(
            rid=route.prefix + secrets.token_hex(16),
            prompts=prompts,
            n=n,
            sampling=await self._sampling(request, route, max_tokens, logprobs, scored, grammar),
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            salt=_salt(request.cache_salt),
            priority=request.priority or 0,
        )
        names = {"max_tokens": param, "prompt": route.prompt_param}
        if request.prompt_logprobs is None:
            names["prompt_logprobs"] = "logprobs"
        await off_loop(sum(map(len, prompts)), lambda: self._validate(submission, names))
        options = request.stream_options
        usage = options is not None and bool(options.include_usage)
        return Job(
            submission=submission,
            vocabulary=self.vocabulary,
            model=self.card.name,
            fingerprint=self._fingerprint,
            created=int(time.time()),
            ends=frozenset(self.card.eos_token_ids),
            stream=_streams(request, route),
            include_usage=usage,
            continuous_usage=usage and options is not None and bool(options.continuous_usage_stats),
            return_token_ids=bool(request.return_token_ids),
            stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
            include_stop=bool(request.include_stop_str_in_output),
            skip_special_tokens=request.skip_special_tokens is not False,
            echo=None if echo is None else echo.texts,
            echo_offsets=offsets,
            prompt_logprobs=request.prompt_logprobs,
            prompt_only=prompt_only,
            resumable=options is not None and bool(options.resumable),
            timeout_s=request.timeout,
            interval_s=None if options is None or options.interval_ms is None else options.interval_ms / 1000,
        )

    def _default_tokens(self, route: Route, prompts: list[list[int]], n: int) -> int:
        """At least 1, so that a prompt without room is refused for being too long and not for our own default."""
        room = validate.room(self.card, self.limits) - max(map(len, prompts))
        share = validate.MAX_TOTAL_TOKENS // (len(prompts) * n)
        return max(1, min(room, share, room if route.max_tokens is None else route.max_tokens))

    async def _sampling(
        self,
        request: GenerationRequest,
        route: Route,
        max_tokens: int,
        logprobs: int | None,
        prompt_logprobs: int | None,
        grammar: Grammar | None,
    ) -> SamplingParams:
        defaults = self.card.defaults
        temperature = request.temperature
        if temperature is None:
            temperature = defaults.temperature if route.temperature is None else route.temperature
        allowed = request.allowed_token_ids
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=max(temperature, LEAST_TEMPERATURE) if temperature else 0.0,
            top_p=defaults.top_p if request.top_p is None else request.top_p,
            top_k=max(defaults.top_k if request.top_k is None else request.top_k, 0),
            min_p=defaults.min_p if request.min_p is None else request.min_p,
            repetition_penalty=request.repetition_penalty or defaults.repetition_penalty,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            min_tokens=request.min_tokens or 0,
            ignore_eos=bool(request.ignore_eos),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            logit_bias=tuple((request.logit_bias or {}).items()),
            allowed_token_ids=None if allowed is None else tuple(allowed),
            bad_words=await self._bad_words(request.bad_words or []),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
        )

    async def _bad_words(self, words: list[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as it is spelt at the start of a text and, where that differs, after a space."""
        spellings = [before + word.lstrip(" ") for word in words for before in ("", " ")]
        ids = await self.encoder.encode(spellings, add_special=False, param="bad_words") if words else []
        return tuple(dict.fromkeys(tuple(sequence) for sequence in ids if sequence))

    def _validate(self, submission: Submission, params: dict[str, str]) -> None:
        """Asks what the engine will ask. `params` are the names that this request uses for a field."""
        size = len(submission.prompts) * submission.n
        request = Generate(
            epoch=0,
            rid=submission.rid,
            prompts=submission.packed,
            sequences=[WireSequence(i, i // submission.n, i % submission.n) for i in range(size)],
            sampling=submission.sampling,
            seed=submission.seed,
        )
        try:
            validate.check(request, self.card, self.limits, list(map(max, submission.prompts)))
        except validate.InvalidRequest as error:
            param = error.param and params.get(error.param, error.param)
            raise ApiError(error.code, error.message, param) from None


def _salt(text: str | None) -> bytes:
    """A salt of any length as few bytes: there is not much room for it on the wire."""
    return blake2b(text.encode(), digest_size=16).digest() if text else b""


def _streams(request: GenerationRequest, route: Route) -> bool:
    return route.streams if request.stream is None else request.stream


def _told_apart(prompt: str | list[str | int | list[int]]) -> tuple[list[str], list[list[int]]]:
    """Prompts as texts or as token ids; one of the two is empty."""
    if isinstance(prompt, str):
        return [prompt], []
    kinds = set(map(type, prompt))  # at the interpreter's own speed: there may be hundreds of thousands
    if kinds == {str}:
        return cast(list[str], prompt), []
    if kinds == {list}:
        return [], cast(list[list[int]], prompt)
    if kinds == {int}:
        return [], [cast(list[int], prompt)]
    raise _bad("A list of prompts must be all texts, or all token ids, or all lists of token ids.", "prompt")


def _bad(message: str, param: str) -> ApiError:
    return ApiError("invalid_request_error", message, param)
