"""From a request struct to a Job: the checks that need the model, in the order of what they cost, and all defaults.

Whatever passes here the engine will accept, short of a full queue: the last check is `protocol.validate`, which the
engine repeats.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, cast

from api_server.chat import ChatTemplate, text_of, weight
from api_server.detokenize import Vocabulary
from api_server.encode import Encoder, off_loop
from api_server.errors import ApiError
from api_server.job import Job
from api_server.schema import refusals
from api_server.schema.messages import Message, Scalars
from api_server.schema.requests import ChatRequest, CompletionRequest, GenerationRequest, PlainRequest, TokenizeRequest
from api_server.submission import Submission
from protocol import validate
from protocol.messages import Generate, Limits, ModelCard
from protocol.messages import Sequence as WireSequence
from protocol.sampling import SamplingParams

logger: Final = logging.getLogger("tokenwire.admission")

MAX_SEQUENCES: Final = 512  # prompts × n
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


class Admission:
    """Admits requests for one model. Building it parses the tokenizer, which takes a while for a large one."""

    def __init__(self, card: ModelCard, limits: Limits) -> None:
        self.card: Final = card
        self.limits: Final = limits
        self.encoder: Final = Encoder(card)
        self.vocabulary: Final = Vocabulary(self.encoder.tokenizer)
        self._fingerprint: Final = (
            "fp_" + blake2b(card.name.encode() + card.tokenizer_digest, digest_size=5).hexdigest()
        )
        self._template: Final = self._chat_template()

    # ------------------------------------------------------------------------------------------------ the routes

    async def chat(self, request: ChatRequest) -> Job:
        """POST /v1/chat/completions. Raises ApiError, like all of these."""
        self._check(request, CHAT)
        refusals.refuse(request, (refusals.CHAT_TEMPLATE,))
        if request.top_logprobs and not request.logprobs:
            raise _bad("top_logprobs needs logprobs to be true.", "top_logprobs")
        resume = bool(request.continue_final_message)
        prompt = await self.chat_prompt(
            request.messages, request.chat_template_kwargs, resume=resume, generate=request.add_generation_prompt
        )
        last = request.messages[-1]
        echoes = request.echo and last.role == "assistant"
        return await self._job(
            request,
            [prompt],
            CHAT,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            echo=(text_of(last) or "",) if echoes else None,
        )

    async def completion(self, request: CompletionRequest) -> Job:
        """POST /v1/completions."""
        self._check(request, COMPLETION)
        texts, ids = _told_apart(request.prompt)
        if (len(texts) + len(ids)) * (request.n or 1) > MAX_SEQUENCES:
            raise _bad(f"prompts × n is {(len(texts) + len(ids)) * (request.n or 1)}, at most {MAX_SEQUENCES}.", "n")
        prompts = await self.encoder.encode(texts, add_special=True) if texts else ids
        echo: tuple[str, ...] | None = None
        if request.echo:
            echo = tuple(texts) or await off_loop(sum(map(len, ids)), lambda: tuple(map(self.decode, ids)))
        return await self._job(request, prompts, COMPLETION, logprobs=request.logprobs, echo=echo)

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
        refusals.refuse(request, (refusals.CHAT_TEMPLATE, *refusals.NOT_SERVED))
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
        )

    async def _plain(self, request: PlainRequest, route: Route) -> Job:
        self._check(request, route)
        refusals.refuse(request, refusals.NOT_ON_PLAIN_ROUTES)
        if isinstance(request.prompt, str):
            prompts = await self.encoder.encode([request.prompt], add_special=True)
        else:
            prompts = [request.prompt]
        return await self._job(request, prompts, route)

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

        def prompt() -> list[int]:
            text = template.render(messages, kwargs or {}, generate=opens, resume=resume)
            return self.encoder.encode_now([text], add_special=special)[0]

        return await off_loop(weight(messages), prompt)

    def _check(self, request: GenerationRequest, route: Route) -> None:
        """What can be refused before the prompt is looked at."""
        self.check_model(request.model)
        refusals.refuse(request, refusals.NOT_SERVED)
        if request.stream_options is not None and not _streams(request, route):
            raise _bad("stream_options is for requests with stream=true.", "stream_options")

    async def _job(
        self,
        request: GenerationRequest,
        prompts: list[list[int]],
        route: Route,
        *,
        logprobs: int | None = None,
        echo: tuple[str, ...] | None = None,
    ) -> Job:
        if not all(prompts):
            raise _bad("The prompt is empty.", route.prompt_param)
        n = request.n or 1
        param = "max_completion_tokens" if getattr(request, "max_completion_tokens", None) else "max_tokens"
        max_tokens = getattr(request, param) or self._default_tokens(route, prompts, n)
        submission = Submission(
            rid=route.prefix + secrets.token_hex(16),
            prompts=prompts,
            n=n,
            sampling=await self._sampling(request, route, max_tokens, logprobs),
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            salt=(request.cache_salt or "").encode(),
            priority=request.priority or 0,
        )
        self._validate(submission, {"max_tokens": param, "prompt": route.prompt_param})
        options = request.stream_options
        usage = options is not None and bool(options.include_usage)
        return Job(
            submission=submission,
            vocabulary=self.vocabulary,
            model=self.card.name,
            fingerprint=self._fingerprint,
            created=int(time.time()),
            stream=_streams(request, route),
            include_usage=usage,
            continuous_usage=usage and options is not None and bool(options.continuous_usage_stats),
            return_token_ids=bool(request.return_token_ids),
            stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
            include_stop=bool(request.include_stop_str_in_output),
            skip_special_tokens=request.skip_special_tokens is not False,
            echo=echo,
            timeout_s=request.timeout,
        )

    def _default_tokens(self, route: Route, prompts: list[list[int]], n: int) -> int:
        """At least 1, so that a prompt without room is refused for being too long and not for our own default."""
        room = validate.room(self.card, self.limits) - max(map(len, prompts))
        share = validate.MAX_TOTAL_TOKENS // (len(prompts) * n)
        return max(1, min(room, share, room if route.max_tokens is None else route.max_tokens))

    async def _sampling(
        self, request: GenerationRequest, route: Route, max_tokens: int, logprobs: int | None
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
        )

    async def _bad_words(self, words: list[str]) -> tuple[tuple[int, ...], ...]:
        """Each word as it is spelt at the start of a text and, where that differs, after a space."""
        spellings = [spelling for word in words for spelling in (word.lstrip(), " " + word.lstrip())]
        ids = await self.encoder.encode(spellings, add_special=False, param="bad_words") if words else []
        return tuple(dict.fromkeys(tuple(sequence) for sequence in ids if sequence))

    def _validate(self, submission: Submission, params: dict[str, str]) -> None:
        """Asks what the engine will ask. `params` are the names that this request uses for a field."""
        size = len(submission.prompts) * submission.n
        request = Generate(
            epoch=0,
            rid=submission.rid,
            prompts=submission.prompts,
            sequences=[WireSequence(i, i // submission.n, i % submission.n) for i in range(size)],
            sampling=submission.sampling,
            seed=submission.seed,
        )
        try:
            validate.check(request, self.card, self.limits)
        except validate.InvalidRequest as error:
            param = error.param and params.get(error.param, error.param)
            raise ApiError(error.code, error.message, param) from None


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
