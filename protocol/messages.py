"""The wire: commands go down to the engine, events come up from it. Nothing else travels.

One msgpack frame per message, tagged (events from 17 on) and array-like; a new field is added last and with a default,
so that an older peer still decodes it. The sequence number of a stream is the position in its output: `Delta.pos`
counts output tokens, the engine keeps every request's token log, and what a peer has not taken yet is a position in it.

Handles are the frontend's own integers, unique in its life; request ids (`rid`) are the server-made strings that
clients see. Every event carries the epoch of the engine process that sent it: anything of another epoch is dropped.
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

from protocol.metrics import EngineMetrics
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import SamplingParams, Seed, TokenId

PROTOCOL_VERSION = 1

Handle = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Epoch = Annotated[int, Meta(ge=0, le=2**63 - 1)]
RequestId = Annotated[str, Meta(min_length=1, max_length=128)]
Digest = Annotated[bytes, Meta(max_length=64)]
FrontendId = Annotated[bytes, Meta(min_length=16, max_length=16)]


class FinishReason(IntEnum):
    """Why a sequence ended well. Everything else is `Failed`."""

    STOP = 0  # an end-of-sequence or stop token, or a stop string
    LENGTH = 1  # max_tokens or the context is used up


# ------------------------------------------------------------------------------------------------ commands, down


class Hello(Struct, tag=1, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """First message of every connection. `frontend` names the process, `boot` this connection of it; the tokenizer is
    left out of the answer if `tokenizer_digest` already names it."""

    version: int
    frontend: FrontendId
    boot: FrontendId
    tokenizer_digest: Digest = b""


class Sequence(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One choice of one prompt. `out` is what was already produced (empty, or a replay after an engine's death): it
    counts as output for penalties, limits and positions, not as prompt."""

    handle: Handle
    prompt: Annotated[int, Meta(ge=0, lt=2**16)]
    choice: Annotated[int, Meta(ge=0, lt=2**16)] = 0
    out: list[TokenId] = []


class Generate(Struct, tag=2, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One HTTP request: all its prompts, as `protocol.tokens` packs them, and all its choices, accepted or refused
    whole.

    `sequences[i].prompt` indexes `prompts`; siblings share their prompt's prefill. `key` is the API key's digest, which
    also separates prefix caches, as does `salt`. A request with `meta` is resumable; what it says is the frontends'
    own, and comes back unread to who attaches. A lower `priority` runs earlier.
    """

    epoch: Epoch
    rid: RequestId
    prompts: Annotated[list[Annotated[bytes, Meta(min_length=4)]], Meta(min_length=1, max_length=512)]
    sequences: Annotated[list[Sequence], Meta(min_length=1, max_length=512)]
    sampling: SamplingParams
    seed: Seed
    key: Digest = b""
    salt: Digest = b""
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] = 0
    meta: bytes = b""


class Abort(Struct, tag=3, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Nobody wants these any more: their blocks are free after the step in flight. Unknown handles are ignored."""

    handles: list[Handle]


class Stop(Struct, tag=4, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The frontend found a stop string that is complete at output position `pos`: a success, whose log ends there for
    whoever resumes it."""

    handle: Handle
    pos: Annotated[int, Meta(ge=0, lt=2**31)]


class Cancel(Struct, tag=5, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Whoever holds this key wants the request no more, whichever frontend reads it. Its reader gets a Failed behind
    the tokens that there are already."""

    rid: RequestId
    key: Digest = b""


class Attach(Struct, tag=8, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Its sender reads a resumable request from here on: sequence `i` under `first_handle + i`, from output position
    `positions[i]`, or from its beginning where there are none. Whoever read it before is told that it is Taken."""

    rid: RequestId
    first_handle: Handle
    key: Digest = b""
    positions: Annotated[list[Annotated[int, Meta(ge=0, lt=2**31)]], Meta(max_length=512)] = []


class Detach(Struct, tag=9, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Nobody reads these at the moment. What is resumable goes on, and waits for its time of grace."""

    handles: list[Handle]


Command = Hello | Generate | Abort | Stop | Cancel | Attach | Detach


# ---------------------------------------------------------------------------------------------------- events, up


class SamplingDefaults(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What the model's own generation_config.json recommends where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class ModelCard(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """All that a frontend needs to know of the model; with it a frontend needs no model files.

    `tokenizer` is the text of a tokenizer.json, empty if the Hello's digest already named it. `special_tokens` are the
    named ones that a chat template may use (bos_token, eos_token, …). `vocab_size` is the width of the logits: ids
    must stay below it.
    """

    name: str
    created: int  # unix seconds
    tokenizer: bytes
    tokenizer_digest: Digest
    chat_template: str | None
    special_tokens: dict[str, str]
    eos_token_ids: list[TokenId]
    vocab_size: int
    max_model_len: int
    defaults: SamplingDefaults = SamplingDefaults()


class Limits(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """What this engine can hold, so that a frontend refuses what could never run."""

    kv_tokens: int  # capacity of the KV cache, tokens
    max_num_seqs: int
    max_queued_requests: int
    max_queued_tokens: int
    block_size: int = 16


class Welcome(Struct, tag=17, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Answer to Hello: the engine is loaded and takes requests of this epoch."""

    version: int
    epoch: Epoch
    card: ModelCard
    limits: Limits


class Accepted(Struct, tag=18, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The request is in the queue and will be answered by deltas or a Failed."""

    epoch: Epoch
    rid: RequestId


class Rejected(Struct, tag=19, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The request never entered the queue. `code` is one of the API's error codes, `param` the field at fault."""

    epoch: Epoch
    rid: RequestId
    code: str
    message: str
    param: str | None = None


class TokenLogprobs(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Natural-log probabilities at one position: the chosen token's, and the likeliest ones, best first."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class FirstToken(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Rides on a sequence's first delta: seconds in the queue and in prefill, and prompt tokens found in the cache."""

    queue_s: float
    prefill_s: float
    cached_tokens: int = 0


class Delta(Struct, array_like=True, omit_defaults=True, gc=False):
    """Output tokens `pos`, `pos + 1`, … of one sequence. `finish` comes with the last token; `stop_token` is the id
    from `stop_token_ids` that ended it (not set for the model's own end-of-sequence). `prompt` is a portion of what
    was asked for of the prompt: all portions come in order, on the first choice, before its first token."""

    handle: Handle
    pos: int
    tokens: list[int]
    finish: FinishReason | None = None
    stop_token: int | None = None
    first: FirstToken | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt: PromptLogprobs | None = None


class Load(Struct, array_like=True, omit_defaults=True, gc=False):
    """How busy the engine is after a step, and whether it takes new requests."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # 0 … 1
    draining: bool = False
    full: bool = False  # as many requests wait as may


class Step(Struct, tag=20, array_like=True, omit_defaults=True, gc=False):
    """What a step produced for one frontend. Without deltas it is the heartbeat. `next_due_s` is the lease: the next
    Step comes within that many seconds, or the engine is stuck."""

    epoch: Epoch
    step: int
    next_due_s: float
    deltas: list[Delta]
    load: Load


class Failed(Struct, tag=21, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """These sequences ended without a finish reason; `code` and `message` are for the client."""

    epoch: Epoch
    handles: list[Handle]
    code: str
    message: str


class Dying(Struct, tag=22, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The engine ends now, with its last words."""

    epoch: Epoch
    reason: str


class Metrics(Struct, tag=23, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The engine's figures, sent twice a second and whenever it falls idle. `serial` counts them: all frontends get the
    same ones, though not at the same moment."""

    epoch: Epoch
    metrics: EngineMetrics
    serial: int = 0


class Cancelled(Struct, tag=24, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Answer to Cancel, in the order in which they came. `found` is false for a request that is unknown, has ended, or
    was made with another key."""

    epoch: Epoch
    rid: RequestId
    found: bool


class Attached(Struct, tag=27, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Answer to Attach: deltas follow, from the positions that were asked for, under the handles that were given.
    `sequences` is how many there are, `meta` as in the Generate. `scored` are the lengths of the prompts, if what comes
    first are their log probabilities."""

    epoch: Epoch
    rid: RequestId
    meta: bytes
    sequences: int
    scored: list[int] = []


class Unknown(Struct, tag=28, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Answer to Attach: there is nothing to resume of this name and key, or not any more."""

    epoch: Epoch
    rid: RequestId


class Taken(Struct, tag=29, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Somebody else reads these from here on."""

    epoch: Epoch
    handles: list[Handle]


Event = Welcome | Accepted | Rejected | Step | Failed | Dying | Metrics | Cancelled | Attached | Unknown | Taken
