"""A frontend process's settings, read once from TOKENWIRE_* variables. Nobody reads the environment later.

Whoever starts the process has parsed what people write: sizes come as plain numbers of bytes."""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from api_server.parsing.select import REASONING_PARSERS, TOOL_PARSERS
from api_server.schema.fields import MAX_INTERVAL_MS
from protocol.channel import BadEndpoint, check_endpoint

PREFIX: Final = "TOKENWIRE_"
_LISTS: Final = ("api_keys", "cors_origins")

Seconds = Annotated[float, Meta(ge=0.0, le=1e7)]
PositiveSeconds = Annotated[float, Meta(gt=0.0, le=1e7)]
Port = Annotated[int, Meta(ge=0, le=65_535)]


class ConfigError(ValueError):
    """A setting can't be used. The message is one line that names the variable."""


def variable(field: str) -> str:
    """The environment variable of a field: `shutdown_timeout_s` is TOKENWIRE_SHUTDOWN_TIMEOUT."""
    name = field.removesuffix("_s") if field != "api_keys" else "api_key"
    return PREFIX + name.upper()


class Config(msgspec.Struct, frozen=True, kw_only=True, rename=variable):
    """Everything a frontend can be told. Field names carry units, variables don't."""

    engine: Annotated[str, Meta(min_length=1)]  # endpoint of the engine core
    host: str = "127.0.0.1"
    port: Port = 8000
    listen_fd: Annotated[int, Meta(ge=0)] | None = (
        None  # a listening socket from the supervisor, instead of host and port
    )
    board_fd: Annotated[int, Meta(ge=0)] | None = None  # memory that it shares with the others behind the same address
    model_name: str = ""  # what metrics call the model until the engine has told its name
    ready_fd: Annotated[int, Meta(ge=0)] | None = None  # gets one byte once the socket is served
    give_fd: Annotated[int, Meta(ge=0)] | None = None  # the ends of the passage to the frontend that comes next, and
    take_fd: Annotated[int, Meta(ge=0)] | None = None  # from the one before; only together
    successor: bool = False  # another frontend serves meanwhile: accept nothing before it can be served
    insecure_tcp: bool = False  # let `engine` be tcp:// on loopback
    health_only: bool = False  # serve the health routes and nothing else

    tool_call_parser: str = "auto"  # one of TOOL_PARSERS
    reasoning_parser: str = "auto"  # one of REASONING_PARSERS

    api_keys: tuple[str, ...] = ()
    metrics_key: str | None = None
    cors_origins: tuple[str, ...] = ()

    shutdown_timeout_s: Seconds = 120.0
    drain_grace_s: Seconds = 0.0
    stall_timeout_s: PositiveSeconds = 60.0
    keepalive_interval_s: PositiveSeconds = 15.0
    stream_interval_ms: Annotated[float, Meta(ge=0.0, le=MAX_INTERVAL_MS)] = 0.0  # between two chunks of a stream
    first_token_timeout_s: PositiveSeconds = 120.0
    request_timeout_s: PositiveSeconds = 1800.0

    max_body_size: Annotated[int, Meta(ge=1)] = 4 << 20  # bytes on the wire
    max_header_size: Annotated[int, Meta(ge=256)] = 32 << 10  # bytes, request line included
    max_headers: Annotated[int, Meta(ge=1)] = 64
    header_timeout_s: PositiveSeconds = 10.0
    body_timeout_s: PositiveSeconds = 30.0

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


def from_environ(environ: Mapping[str, str]) -> Config:
    """The settings, or ConfigError. An empty variable counts as not set."""
    values: dict[str, object] = {
        name: text for name, text in environ.items() if name.startswith(PREFIX) and text.strip() != ""
    }
    for field in _LISTS:
        if (text := values.get(variable(field))) is not None:
            values[variable(field)] = [part for part in (part.strip() for part in str(text).split(",")) if part]
    try:
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), values)) from error
    if "," in config.engine:
        raise ConfigError(f"{variable('engine')}: {config.engine}: one engine per frontend is what is supported so far")
    for field, names in (("tool_call_parser", TOOL_PARSERS), ("reasoning_parser", REASONING_PARSERS)):
        if (name := getattr(config, field)) not in names:
            raise ConfigError(f"{variable(field)}: expected one of {', '.join(names)}, got {name!r}")
    try:
        check_endpoint(config.engine, insecure_tcp=config.insecure_tcp)
    except BadEndpoint as error:
        raise ConfigError(f"{variable('engine')}: {error}") from error
    return config


def _explain(message: str, values: Mapping[str, object]) -> str:
    """msgspec's message with the variable in front; keys stay out of it."""
    found = re.search(r"`\$\.(\w+)", message) or re.search(r"field `(\w+)`", message)
    if found is None:
        return message
    name = found[1]
    if name not in values:
        return f"{name} is not set"
    reason = message.split(" - at ")[0]
    return f"{name}: {reason[0].lower()}{reason[1:]}, got {str(values[name])!r}"
