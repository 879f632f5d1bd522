"""The sampling parameters that no API has under another name, most of them vLLM's extensions."""

from msgspec import Struct

from api_server.schema import fields
from api_server.schema.messages import Scalars
from protocol.sampling import Seed


class Sampling(Struct, kw_only=True, frozen=True):
    """What every generating route takes."""

    top_k: fields.TopK | None = None
    min_p: fields.MinP | None = None
    seed: Seed | None = None
    stop_token_ids: fields.StopTokenIds | None = None
    presence_penalty: fields.Penalty | None = None
    frequency_penalty: fields.Penalty | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    logit_bias: fields.LogitBias | None = None
    min_tokens: fields.MinTokens | None = None
    ignore_eos: bool | None = None
    allowed_token_ids: fields.AllowedTokenIds | None = None
    bad_words: fields.BadWords | None = None
    priority: fields.Priority | None = None
    cache_salt: fields.CacheSalt | None = None
    timeout: fields.TimeoutS | None = None


class Extensions(Sampling, kw_only=True, frozen=True):
    """What the chat route takes, for the APIs whose own parameters are few."""

    chat_template_kwargs: Scalars | None = None
