"""From what a request says of functions to what the model is told of them, and which calls it may or must write.

Knows no way to write a call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from api_server.errors import ApiError
from api_server.parsing.parameters import Function
from api_server.schema.requests import ChatRequest
from api_server.schema.tools import AllowedTools, AllowedToolsChoice, FunctionDefinition, NamedFunction, NamedTool, Tool
from protocol.sampling import MAX_GRAMMAR_SIZE

Described = dict[str, Any]

NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """`functions` is what the model is told of, `allowed` are those of them that it may call. `forced`: the answer is
    calls and nothing else, `named`: it is one call of the one function. `legacy`: the request calls them functions and
    not tools, and so does its answer."""

    functions: tuple[FunctionDefinition, ...]
    allowed: tuple[FunctionDefinition, ...]
    size: int  # characters that the work on the functions is about
    forced: bool = False
    named: bool = False
    parallel: bool = True
    legacy: bool = False

    @property
    def param(self) -> str:
        return "functions" if self.legacy else "tools"

    @property
    def choice_param(self) -> str:
        return "function_call" if self.legacy else "tool_choice"

    @property
    def max_calls(self) -> int | None:
        return None if self.parallel else 1

    @property
    def signatures(self) -> list[Function]:
        """What a call must look like, of each function that may be called."""
        return [Function(function.name, function.parameters, bool(function.strict)) for function in self.allowed]


def calling_of(request: ChatRequest) -> Calling | None:
    """None if nothing can be called. Raises ApiError for choices that do not go with the functions."""
    if request.functions is None and request.function_call is None:
        return _tools(request)
    for name in ("tools", "tool_choice"):
        if getattr(request, name) is not None:
            raise _bad(f"`{name}` does not go with `functions` and `function_call`, which it replaces.", name)
    return _functions(request)


def describe(functions: Sequence[FunctionDefinition]) -> list[Described]:
    """The functions as chat templates expect them. `strict` is left out: that is about what is enforced, and no model
    was trained to read it."""
    return [{"type": "function", "function": _describe(function)} for function in functions]


def functions_of(tools: Sequence[Tool]) -> tuple[FunctionDefinition, ...]:
    """Raises ApiError for tools that are no functions."""
    functions = []
    for i, tool in enumerate(tools):
        if tool.type != "function":
            message = f"`tools[{i}]`: tools of type `{tool.type}` are not served; only functions are."
            raise ApiError("unsupported_parameter", message, "tools")
        if tool.function is None:
            raise _bad(f"`tools[{i}].function` is missing.", "tools")
        functions.append(tool.function)
    return tuple(functions)


def size_of(functions: Sequence[FunctionDefinition], param: str = "tools") -> int:
    """Characters that the work on the functions is about. Raises ApiError for parameters that are too large."""
    total = 0
    for i, function in enumerate(functions):
        size = len(msgspec.json.encode(function.parameters))
        if size > MAX_GRAMMAR_SIZE:
            message = f"`{param}[{i}]`: the schema of the parameters has {size} bytes, at most {MAX_GRAMMAR_SIZE}."
            raise _bad(message, param)
        total += size + len(function.description or "")
    return total


def _tools(request: ChatRequest) -> Calling | None:
    choice, parallel = request.tool_choice, request.parallel_tool_calls is not False
    functions = functions_of(request.tools or ())
    if not functions:
        absent = choice is None or choice == "none" or (choice == "auto" and request.tools is not None)
        if not absent:
            raise _bad("`tool_choice` is only allowed when `tools` are specified.", "tool_choice")
        return None
    size = size_of(functions)
    match choice:
        case "none":
            return None
        case NamedTool(function):
            one = (_find(functions, function, "tool_choice"),)
            return Calling(functions=functions, allowed=one, size=size, forced=True, named=True, parallel=False)
        case AllowedToolsChoice(allowed):
            functions = _allowed(functions, allowed)
            forced = allowed.mode == "required"
        case _:
            forced = choice == "required"
    if not functions:
        return None
    return Calling(functions=functions, allowed=functions, size=size, forced=forced, parallel=parallel)


def _functions(request: ChatRequest) -> Calling | None:
    choice, functions = request.function_call, tuple(request.functions or ())
    if not functions:
        if choice is not None and choice != "none":
            raise _bad("`function_call` is only allowed when `functions` are specified.", "function_call")
        return None
    size = size_of(functions, "functions")
    if choice == "none":
        return None
    named = isinstance(choice, NamedFunction)
    allowed = (_find(functions, choice, "function_call"),) if isinstance(choice, NamedFunction) else functions
    return Calling(
        functions=functions, allowed=allowed, size=size, forced=named, named=named, parallel=False, legacy=True
    )


def _find(functions: Sequence[FunctionDefinition], named: NamedFunction, param: str) -> FunctionDefinition:
    for function in functions:
        if function.name == named.name:
            return function
    raise _bad(f"`{param}` names the function `{named.name}`, which the request does not have.", param)


def _allowed(functions: tuple[FunctionDefinition, ...], allowed: AllowedTools) -> tuple[FunctionDefinition, ...]:
    """The model is not even told of the others."""
    known = {function.name for function in functions}
    names = {tool.function.name for tool in allowed.tools if tool.type == "function" and tool.function is not None}
    if len(names) < len(allowed.tools) or not names <= known:
        raise _bad("`tool_choice` allows a tool that is not in `tools`, or the same one twice.", "tool_choice")
    if not names and allowed.mode == "required":
        raise _bad("`tool_choice` requires a call and allows none.", "tool_choice")
    return tuple(function for function in functions if function.name in names)


def _describe(function: FunctionDefinition) -> Described:
    told: Described = {"name": function.name}
    if function.description is not None:
        told["description"] = function.description
    return told | {"parameters": NO_PARAMETERS if function.parameters is None else function.parameters}


def _bad(message: str, param: str) -> ApiError:
    return ApiError("invalid_request_error", message, param)
