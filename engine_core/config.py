"""One frozen Config for the process, made once from TOKENWIRE_* variables. Nothing else reads the environment."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

PREFIX: Final = "TOKENWIRE_"
Positive = Annotated[int, Meta(ge=1)]


class BadSetting(ValueError):
    """A variable's value can't be used; the message names it."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor, or whoever starts `python -m engine_core` by hand, has decided. Sizes in bytes or tokens."""

    listen: str  # endpoint to bind
    model: str = ""  # folder or hub id; empty is the built-in model
    revision: str | None = None
    served_model_name: str | None = None
    epoch: int | None = None  # counted by the supervisor; an engine alone takes the time
    first_epoch: int | None = None  # where the supervisor began to count
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_format: Literal["auto", "dummy"] = "auto"
    max_model_len: Positive | None = None
    max_num_seqs: Positive = 256
    max_num_batched_tokens: Positive | None = None
    kv_cache_memory: Positive | None = None
    block_size: Positive = 16
    enable_prefix_caching: bool = True
    max_queued_requests: Positive = 512
    max_queued_tokens: Positive | None = None
    chat_template: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    insecure_tcp: bool = False
    shutdown_timeout: Annotated[float, Meta(ge=0)] = 120.0  # seconds
    resume_grace: Annotated[float, Meta(ge=0)] = 60.0  # seconds
    ready_fd: int | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


def from_environ(environ: Mapping[str, str]) -> Config:
    """Raises BadSetting. Variables of other processes are passed over."""
    names = {PREFIX + field.name.upper(): field for field in msgspec.structs.fields(Config)}
    given: dict[str, object] = {}
    for variable, field in names.items():
        if variable in environ:
            try:
                given[field.name] = msgspec.convert(environ[variable], field.type, strict=False)
            except msgspec.ValidationError as error:
                raise BadSetting(f"{variable}={environ[variable]}: {error}") from error
    if "listen" not in given:
        raise BadSetting(f"{PREFIX}LISTEN: an endpoint is needed, ipc://PATH or tcp://HOST:PORT")
    return Config(**given)  # type: ignore[arg-type]
