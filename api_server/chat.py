"""Messages to prompt text, by the model's own chat template, in a sandbox and with limits.

The environment is what templates on the Hugging Face hub are written for: loop controls, `tojson`, `raise_exception`,
`strftime_now`, `{% generation %}` blocks, and the special tokens as variables. Requests never bring a template.
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from api_server.errors import ApiError
from api_server.schema.messages import ContentPart, Message, Scalars, ToolCall

OWN_VARIABLES: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)
CUT: Final = "\ue000cut here\ue000"  # put after the message that is to be continued; private use, so no text has it
SEPARATOR: Final = "\n"  # between the text parts of one message
MESSAGE_WEIGHT: Final = 200  # characters that the work on an empty message is like
ASKS_FOR_NONE: Final = re.compile(r"content['\"]?\]? +(?:is|is not|==|!=) +none\b", re.IGNORECASE)


class ChatTemplate:
    """A model's chat template, compiled once."""

    def __init__(self, source: str, special_tokens: dict[str, str], max_chars: int) -> None:
        """Raises ValueError for a template that does not compile."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template: Final = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template does not compile: {error}") from error
        self._special_tokens: Final = special_tokens
        self._max_chars: Final = max_chars
        self._knows_developer: Final = "developer" in source
        self._no_content: Final = (
            None if ASKS_FOR_NONE.search(source) else ""
        )  # others take null for a list, or show it

    def render(
        self,
        messages: Sequence[Message],
        kwargs: Scalars,
        *,
        generate: bool,
        resume: bool,
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        """The prompt. `generate` adds the opening of an answer, `resume` leaves the last message open instead. `tools`
        are for templates that show them; from any other, the model does not hear of them.

        Raises ApiError for messages that the template or this server can't put into words.
        """
        taken = kwargs.keys() & (OWN_VARIABLES | self._special_tokens.keys())
        if taken:
            raise _refusal(f"`{min(taken)}` is not for chat_template_kwargs to set.", "chat_template_kwargs")
        conversation = [self._as_dict(message, i) for i, message in enumerate(messages)]
        _name_results(conversation)
        if resume:
            conversation[-1]["content"] = (conversation[-1]["content"] or "") + CUT + " "
        variables = {**kwargs, **self._special_tokens, "messages": conversation, "documents": None}
        prompt = self._run({**variables, "tools": list(tools) or None, "add_generation_prompt": generate})
        if not resume:
            return prompt
        before, cut, after = prompt.rpartition(CUT)
        if not cut:
            raise _refusal("This model's chat template does not show the last message, so it can't be continued.")
        return before if after.startswith(" ") else before.rstrip()  # as a template does that trims its messages

    def _run(self, variables: dict[str, Any]) -> str:
        pieces: list[str] = []
        room = self._max_chars
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise ApiError("context_length_exceeded", "The messages are longer than the context.", "messages")
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _refusal(f"The model's chat template refuses these messages: {error}") from None
        except RecursionError:
            raise _refusal("The model's chat template recurses too deep for these messages.") from None
        return "".join(pieces)

    def _as_dict(self, message: Message, position: int) -> dict[str, Any]:
        """The message as templates expect it: text content, and the arguments of calls as objects."""
        where = f"messages[{position}]"
        role: str = message.role
        if role == "developer" and not self._knows_developer:
            role = "system"
        elif role == "function":  # the older name of what templates know
            role = "tool"
        content, calls = text_of(message, where), _calls(message)
        if content is None and not calls:
            if message.reasoning_content is None:
                raise _refusal(f"{where}: `content` is missing.")
            content = ""  # as our own answers are that end before their thoughts do
        conversation: dict[str, Any] = {"role": role, "content": self._no_content if content is None else content}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(message, name)) is not None:
                conversation[name] = value
        if calls:
            conversation["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments, where)},
                }
                for call in calls
            ]
        return conversation


def text_of(message: Message, where: str = "content") -> str | None:
    """A message's text, which may be a refusal to say anything else. Raises ApiError for parts that are no text."""
    content = message.content
    if isinstance(content, list):
        content = SEPARATOR.join(_part(part, where) for part in content)
    return content or message.refusal or content


def _calls(message: Message) -> list[ToolCall]:
    """All calls that the message makes, also the one that is spelt the older way."""
    calls = list(message.tool_calls or ())
    if message.function_call is not None:
        calls.append(ToolCall(message.function_call))
    return calls


def _name_results(conversation: Sequence[dict[str, Any]]) -> None:
    """Adds the function's name to each result of a call. Clients tell the call alone, and some templates ask."""
    names: dict[str, str] = {}
    for message in conversation:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            message.setdefault("name", names[message["tool_call_id"]])


def weight(messages: Sequence[Message], enough: int) -> int:
    """Characters that the work on a conversation is about, counted until they are more than `enough`. A message costs
    something even when it is empty."""
    size = 0
    for message in messages:
        content = message.content or ""
        texts = [content] if isinstance(content, str) else [part.text or part.refusal or "" for part in content]
        texts += [message.refusal or "", message.reasoning_content or ""]
        texts += [call.function.arguments for call in _calls(message)]
        size += MESSAGE_WEIGHT + sum(map(len, texts))
        if size > enough:
            break
    return size


def _part(part: ContentPart, where: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None and part.type in ("text", "refusal"):
        raise _refusal(f"{where}: a content part of type `{part.type}` lacks its `{part.type}`.")
    if text is None:
        raise _refusal(f"{where}: this model reads text only, not content of type `{part.type}`.")
    return text


def _arguments(arguments: str, where: str) -> Any:
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        raise _refusal(f"{where}: the arguments of a tool call are no JSON.") from None


def _refusal(message: str, param: str = "messages") -> ApiError:
    return ApiError("invalid_request_error", message, param)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class GenerationBlock(Extension):
    """`{% generation %}` marks what a model was trained to say. It changes nothing in what is said."""

    tags: Final = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        inside: Callable[[], nodes.Expr] = lambda: self.call_method("_same")  # noqa: E731
        return nodes.CallBlock(inside(), [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()
