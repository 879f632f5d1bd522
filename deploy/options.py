"""The one table of options: flag, environment variable and configuration key of each, and which process gets it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["value", "switch", "list"]
Parse = Callable[[str], str]  # the text as children get it; raises ValueError that says what was expected

SERVE: Final = frozenset({"serve"})
ENGINE: Final = frozenset({"serve", "engine"})
API: Final = frozenset({"serve", "api"})
ALL: Final = frozenset({"serve", "engine", "api"})
BUILT_IN_MODEL: Final = "tokenwire-tiny"
PREFIX: Final = "TOKENWIRE_"
# Frontends know what they mean; auto looks at the model's chat template.
TOOL_PARSERS: Final = ("auto", "none", "hermes", "pythonic", "llama3_json")
REASONING_PARSERS: Final = ("auto", "none", "think", "qwen3", "deepseek_r1")
_SUFFIXES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Option:
    """`default` None means that the process itself decides; `shown` is then what help says of it."""

    name: str  # as in --name
    parse: Parse
    default: str | None
    help: str
    group: str
    commands: frozenset[str]
    to: frozenset[str]  # of "engine", "api"; empty if it is the supervisor's own
    shown: str = ""
    metavar: str = ""
    kind: Kind = "value"

    @property
    def variable(self) -> str:
        return PREFIX + self.name.replace("-", "_").upper()

    @property
    def key(self) -> str:
        """Its name in a configuration file and in argparse's result."""
        return self.name.replace("-", "_")


# ---------------------------------------------------------------------------------------------------- parsers


def text(value: str) -> str:
    if value.strip() == "":
        raise ValueError("expected some text")
    return value


def model(value: str) -> str:
    """The built-in model is handed on as an empty text."""
    return "" if value in ("", BUILT_IN_MODEL) else text(value)


def item(value: str) -> str:
    """One of a list that is handed on with commas between."""
    if "," in value or not value.isascii():
        raise ValueError("expected ASCII without a comma")
    return text(value.strip())


def integer(low: int, high: int) -> Parse:
    def parse(value: str) -> str:
        if not re.fullmatch(r"\s*[+-]?\d+\s*", value) or not low <= int(value) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return str(int(value))

    return parse


def seconds(low: float) -> Parse:
    def parse(value: str) -> str:
        expected = f"expected seconds, {'more than' if low > 0 else 'at least'} 0 and at most 10,000,000"
        try:
            number = float(value)
        except ValueError:
            raise ValueError(expected) from None
        if not low <= number <= 1e7:
            raise ValueError(expected)
        return f"{number:g}" if number < 1e5 else str(number)

    return parse


def size(value: str) -> str:
    """Bytes; K, M and G are 1,024-based."""
    match = re.fullmatch(r"\s*(\d+)([KMG]?)\s*", value, re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise ValueError("expected bytes above 0, or such a number with K, M or G")
    return str(int(match[1]) * _SUFFIXES[match[2].upper()])


def choice(*names: str) -> Parse:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return parse


def device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("expected auto, cpu, cuda or cuda:N")
    return value


def switch(value: str) -> str:
    lowered = value.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return "true"
    if lowered in ("0", "false", "no", "off"):
        return "false"
    raise ValueError("expected true or false")


def only(neutral: str) -> Parse:
    """A feature that does not exist yet: nothing but its neutral value is taken."""

    def parse(value: str) -> str:
        if value != neutral:
            raise ValueError(f"only {neutral} is supported so far")
        return value

    return parse


def endpoint(value: str) -> str:
    """The form only; whether tcp:// may be used is checked with --insecure-tcp."""
    if not re.fullmatch(r"ipc://.+|tcp://.+:\d+", value) or "," in value:
        raise ValueError("expected ipc://PATH or tcp://HOST:PORT")
    return value


# ---------------------------------------------------------------------------------------------------- the table

_TO_ENGINE: Final = frozenset({"engine"})
_TO_API: Final = frozenset({"api"})
_TO_BOTH: Final = frozenset({"engine", "api"})
_NOBODY: Final[frozenset[str]] = frozenset()
_MANY: Final = 2**31 - 1


def _model(name: str, parse: Parse, default: str | None, help: str, **more: str) -> Option:
    return _option("Model", name, parse, default, help, ENGINE, _TO_ENGINE, **more)


def _batching(name: str, parse: Parse, default: str | None, help: str, **more: str) -> Option:
    return _option("Batching and memory", name, parse, default, help, ENGINE, _TO_ENGINE, **more)


def _http(group: str, name: str, parse: Parse, default: str | None, help: str, **more: str) -> Option:
    return _option(group, name, parse, default, help, API, _TO_API, **more)


def _option(
    group: str,
    name: str,
    parse: Parse,
    default: str | None,
    help: str,
    commands: frozenset[str],
    to: frozenset[str],
    *,
    shown: str = "",
    metavar: str = "",
    kind: str = "value",
) -> Option:
    kinds: dict[str, Kind] = {"value": "value", "switch": "switch", "list": "list"}
    return Option(
        name=name,
        parse=parse,
        default=default,
        help=help,
        group=group,
        commands=commands,
        to=to,
        shown=shown,
        metavar=metavar,
        kind=kinds[kind],
    )


OPTIONS: Final[tuple[Option, ...]] = (
    _model("model", model, BUILT_IN_MODEL, "a local folder or a Hugging Face id; left out, the built-in model"),
    _model("served-model-name", text, None, "what clients call the model", shown="MODEL", metavar="NAME"),
    _model("revision", text, None, "branch, tag or commit of a Hugging Face model", shown="main"),
    _model("device", device, "auto", "where the model runs: auto, cpu, cuda, cuda:N"),
    _model("dtype", choice("auto", "float32", "bfloat16", "float16"), "auto", "auto, float32, bfloat16, float16"),
    _model("load-format", choice("auto", "dummy"), "auto", "auto, or dummy for random weights"),
    _model("max-model-len", integer(1, _MANY), None, "longest prompt plus output, tokens", shown="from the model"),
    _model("chat-template", text, None, "file with a Jinja template", shown="from the model", metavar="FILE"),
    _http(
        "Model",
        "tool-call-parser",
        choice(*TOOL_PARSERS),
        "auto",
        f"how tool calls are read: {', '.join(TOOL_PARSERS)}",
    ),
    _http(
        "Model",
        "reasoning-parser",
        choice(*REASONING_PARSERS),
        "auto",
        f"how reasoning is read: {', '.join(REASONING_PARSERS)}",
    ),
    _model("trust-remote-code", switch, "false", "run code that comes with the model", kind="switch"),
    _model("seed", integer(-(2**63), 2**63 - 1), None, "of random weights", shown="0"),
    _batching("max-num-seqs", integer(1, 65_536), "256", "sequences that run at the same time"),
    _batching(
        "max-num-batched-tokens",
        integer(1, _MANY),
        None,
        "tokens in one step",
        shown="2048 on cpu, 8192 on cuda",
    ),
    _batching(
        "kv-cache-memory",
        size,
        None,
        "bytes of KV cache; K, M, G",
        shown="cuda: 90 %% of what is free after load; cpu: 2G or half of what is free",
        metavar="SIZE",
    ),
    _batching("block-size", integer(1, 1024), "16", "tokens in a block of the KV cache"),
    _batching("enable-prefix-caching", switch, "true", "reuse the KV of equal prompt beginnings", kind="switch"),
    _batching("max-queued-requests", integer(1, _MANY), "512", "requests that may wait; then 429"),
    _batching("max-queued-tokens", integer(1, _MANY), None, "prompt tokens that may wait; then 429", shown="no limit"),
    _batching("tensor-parallel-size", only("1"), "1", "devices per model; only 1 so far"),
    _option("Processes", "data-parallel-size", only("1"), "1", "engines; only 1 so far", SERVE, _NOBODY),
    _option("Processes", "api-workers", integer(1, 1024), "1", "frontend processes on the one port", API, _NOBODY),
    _option(
        "Processes",
        "run-dir",
        text,
        None,
        "private folder for sockets",
        ENGINE,
        _TO_ENGINE,
        shown="a fresh one",
        metavar="DIR",
    ),
    _option(
        "Processes",
        "listen",
        endpoint,
        None,
        "where frontends find this engine: ipc://PATH or tcp://HOST:PORT",
        frozenset({"engine"}),
        _NOBODY,
        shown="required",
        metavar="ENDPOINT",
    ),
    _option(
        "Processes",
        "engine",
        endpoint,
        None,
        "where the engine listens; one so far",
        frozenset({"api"}),
        _NOBODY,
        shown="required",
        metavar="ENDPOINT",
        kind="list",
    ),
    _option(
        "Processes",
        "insecure-tcp",
        switch,
        "false",
        "allow tcp:// endpoints, unencrypted, on loopback only",
        frozenset({"engine", "api"}),
        _TO_BOTH,
        kind="switch",
    ),
    _option(
        "Processes",
        "health-port",
        integer(0, 65_535),
        None,
        "serve this engine's livez, readyz and startupz there",
        frozenset({"engine"}),
        _NOBODY,
        shown="not served",
    ),
    _option(
        "Processes", "shutdown-timeout", seconds(0), "120", "seconds that running streams get to finish", ALL, _TO_BOTH
    ),
    _option(
        "Processes",
        "resume-grace",
        seconds(0),
        "60",
        "seconds that a resumable stream outlasts its reader, or its end",
        ENGINE,
        _TO_ENGINE,
    ),
    _http("Processes", "drain-grace", seconds(0), "0", "seconds of 503 before the listener closes at shutdown"),
    _option("HTTP", "host", text, "127.0.0.1", "address to listen on", ALL, _NOBODY),
    _option("HTTP", "port", integer(0, 65_535), "8000", "port to listen on; 0 takes a free one", API, _NOBODY),
    _http("HTTP", "cors-origins", item, None, "origins that browsers may call from", kind="list", shown="none"),
    _http("HTTP", "api-key", item, None, "key that clients must show", kind="list", shown="none", metavar="KEY"),
    _http("HTTP", "metrics-key", item, None, "key that /metrics asks for", shown="none", metavar="KEY"),
    _http("Time limits, in seconds", "first-token-timeout", seconds(1e-3), "120", "until a request's first token"),
    _http("Time limits, in seconds", "request-timeout", seconds(1e-3), "1800", "for a whole request"),
    _http("Time limits, in seconds", "stall-timeout", seconds(1e-3), "60", "a client may take no byte of its stream"),
    _http("Time limits, in seconds", "keepalive-interval", seconds(1e-3), "15", "of silence before a comment line"),
    _http("HTTP", "stream-interval-ms", integer(0, 60_000), "0", "at least, between two chunks of a stream"),
    _http("Time limits, in seconds", "header-timeout", seconds(1e-3), "10", "for a request's headers"),
    _http("Time limits, in seconds", "body-timeout", seconds(1e-3), "30", "for a request's body"),
    _http("Size limits", "max-body-size", size, "4M", "bytes of a request's body", metavar="SIZE"),
    _http("Size limits", "max-header-size", size, "32K", "bytes of a request's headers", metavar="SIZE"),
    _http("Size limits", "max-headers", integer(1, 65_536), "64", "headers of a request"),
    _option(
        "Logging",
        "log-level",
        choice("debug", "info", "warning", "error"),
        "info",
        "debug, info, warning, error",
        ALL,
        _TO_BOTH,
    ),
    _option("Logging", "log-format", choice("text", "json"), "text", "text or json", ALL, _TO_BOTH),
)
