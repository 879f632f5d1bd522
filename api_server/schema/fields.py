"""The ranges of request parameters, as types. One name per parameter, so that every route refuses the same values."""

from typing import Annotated

from msgspec import Meta

from protocol.sampling import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, Bias, TokenId

MAX_N = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_BAD_WORDS = 32  # each may become two token sequences: at the start of a text, and after a space
MAX_TIMEOUT_S = 86_400.0
MAX_INTERVAL_MS = 60_000.0

MaxTokens = Annotated[int, Meta(ge=1, lt=2**31)]
EchoTokens = Annotated[int, Meta(ge=0, lt=2**31)]  # 0 is for an echo and nothing else
MinTokens = Annotated[int, Meta(ge=0, lt=2**31)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
TopK = Annotated[int, Meta(ge=-1, lt=2**31)]  # 0 and -1 are off
MinP = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=10.0)]
Choices = Annotated[int, Meta(ge=1, le=MAX_N)]
Priority = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=128)]
TimeoutS = Annotated[float, Meta(gt=0.0, le=MAX_TIMEOUT_S)]
IntervalMs = Annotated[float, Meta(ge=0.0, le=MAX_INTERVAL_MS)]

StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)]
StopTokenIds = Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)]
LogitBias = Annotated[
    dict[TokenId, Bias],
    Meta(max_length=MAX_LOGIT_BIAS, extra_json_schema={"propertyNames": {"pattern": "^[0-9]+$"}}),
]
AllowedTokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_LOGIT_BIAS)]
BadWord = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
BadWords = Annotated[list[BadWord], Meta(max_length=MAX_BAD_WORDS)]
