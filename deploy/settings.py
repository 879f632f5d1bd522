"""From command line, environment and configuration file to one set of values, in that order of precedence."""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from deploy.options import OPTIONS, PREFIX, Option
from protocol.channel import BadEndpoint, check_endpoint

COMMANDS: Final = {
    "serve": "serve a model on this machine: one engine core and its frontends on one port",
    "engine": "one engine core without frontends",
    "api": "frontends for an engine that runs elsewhere; needs no model files",
}
CONFIG_VARIABLE: Final = PREFIX + "CONFIG"
ENDPOINTS: Final = {"engine": "listen", "api": "engine"}  # what these commands can't do without


class UsageError(ValueError):
    """The command can't be understood. The message is one line that names the flag, variable or file."""


@dataclass(frozen=True)
class Settings:
    """What one command was told. Values are texts in the form that child processes read."""

    command: str
    values: Mapping[str, str]  # by option name; an option without value or default is absent

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def get(self, name: str) -> str | None:
        return self.values.get(name)

    def seconds(self, name: str) -> float:
        return float(self.values[name])

    def integer(self, name: str) -> int:
        return int(self.values[name])

    def variables_for(self, child: str) -> dict[str, str]:
        """What the child ("engine" or "api") is told, by environment variable."""
        mine = (option for option in OPTIONS if child in option.to and option.name in self.values)
        return {option.variable: self.values[option.name] for option in mine}


def resolve(arguments: Sequence[str], environ: Mapping[str, str], version: str) -> Settings:
    """Raises UsageError; exits with 0 for --help and --version."""
    given = vars(_parser(version).parse_args(arguments))
    command = given["command"]
    file = given.get("config") or environ.get(CONFIG_VARIABLE)
    from_file = _read(Path(file)) if file else {}
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        if command not in option.commands:
            continue
        source, texts = _find(option, given, environ, f"{file}: ", from_file)
        if texts is not None:
            values[option.name] = _parse(option, source, texts)
            sources[option.name] = source
        elif option.default is not None:
            values[option.name] = option.parse(option.default)
    settings = Settings(command, values)
    _check(settings, sources)
    return settings


def _find(
    option: Option,
    given: Mapping[str, object],
    environ: Mapping[str, str],
    file: str,
    from_file: Mapping[str, list[str]],
) -> tuple[str, list[str] | None]:
    """Where the option's value comes from, and the value as it was written."""
    if (value := given.get(option.key)) is not None:
        name = "MODEL" if option.name == "model" else f"--{option.name}"
        return name, value if isinstance(value, list) else [str(value)]
    if environ.get(option.variable, "").strip():
        value = environ[option.variable]
        return option.variable, value.split(",") if option.kind == "list" else [value]
    return file + option.key, from_file.get(option.key)


def _parse(option: Option, source: str, texts: list[str]) -> str:
    parsed = []
    for text in texts:
        try:
            parsed.append(option.parse(text))
        except ValueError as error:
            got = "" if option.name.endswith("-key") else f", got {text!r}"
            raise UsageError(f"{source}: {error}{got}") from error
    return ",".join(parsed)


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    """What no single option can see."""
    if (name := ENDPOINTS.get(settings.command)) is None:
        return
    if (endpoint := settings.get(name)) is None:
        variable = PREFIX + name.upper()
        raise UsageError(f"--{name} (or {variable}) is missing: {settings.command} needs an ENDPOINT")
    if "," in endpoint:
        raise UsageError(f"{sources[name]}: only one {name} is supported so far")
    try:
        check_endpoint(endpoint, insecure_tcp=settings["insecure-tcp"] == "true")
    except BadEndpoint as error:
        raise UsageError(f"{sources[name]}: {error}") from error


def _read(path: Path) -> dict[str, list[str]]:
    """A configuration file: any option, by its name with - or _."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error
    known = {option.key: option for option in OPTIONS}
    values = {}
    for name, value in table.items():
        option = known.get(name.replace("-", "_"))
        if option is None:
            raise UsageError(f"--config {path}: unknown option {name!r}")
        parts = value if isinstance(value, list) and option.kind == "list" else [value]
        if any(not isinstance(part, str | int | float) for part in parts):
            raise UsageError(f"--config {path}: {name}: expected a plain value")
        values[option.key] = [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
    return values


# ---------------------------------------------------------------------------------------------------- argparse


class _Parser(argparse.ArgumentParser):
    """argparse with errors that are exceptions of ours, so that they are told like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument ").removeprefix("command: "))


def _parser(version: str) -> argparse.ArgumentParser:
    """Flags only collect text; parsing is the options' own, the same for every source."""
    parser = _Parser(
        "tokenwire",
        description="A multi-process LLM serving system.",
        epilog="Every flag --NAME has an environment variable TOKENWIRE_NAME (lists comma-separated) and a key in "
        "--config FILE.toml. Precedence: flag, environment, file, default.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tokenwire {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, help in COMMANDS.items():
        _fill(commands.add_parser(name, help=help, description=help + ".", epilog=parser.epilog, allow_abbrev=False))
    return parser


def _fill(parser: argparse.ArgumentParser) -> None:
    command = parser.prog.split()[-1]
    parser.usage = f"{parser.prog} [OPTION ...]{'' if command == 'api' else ' [MODEL]'}"
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in OPTIONS:
        if command not in option.commands:
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)
    parser.add_argument("--config", metavar="FILE", help="TOML file that sets any of these")


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    help = f"{option.help} [{_shown(option)}]"
    if option.name == "model":
        group.add_argument("model", nargs="?", metavar="MODEL", help=help)
    elif option.kind == "switch":
        group.add_argument(f"--{option.name}", action=argparse.BooleanOptionalAction, help=help)
    else:
        metavar = option.metavar or option.name.rpartition("-")[2].upper()
        action = "append" if option.kind == "list" else "store"
        group.add_argument(f"--{option.name}", action=action, metavar=metavar, help=help)


def _shown(option: Option) -> str:
    shown = option.shown or option.default or ""
    if option.kind == "switch":
        shown = "on" if shown == "true" else "off"
    return shown + ("; may be repeated" if option.kind == "list" else "")
