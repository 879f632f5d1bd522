"""POST /v1/responses as a chat request.

A turn of the model is one message of a chat, but several items here: its reasoning, its text, its calls.
"""

from typing import Final, Literal

from api_server.dialects import bad, shared, unsupported
from api_server.schema import responses_api
from api_server.schema.formats import JsonSchema, JsonSchemaFormat, ResponseFormat
from api_server.schema.messages import ContentPart, FunctionCall, Message, ToolCall
from api_server.schema.requests import ChatRequest
from api_server.schema.responses_api import (
    ChosenTool,
    FunctionTool,
    InputItem,
    InputPart,
    ResponsesRequest,
    TextConfig,
)
from api_server.schema.tools import (
    AllowedTool,
    AllowedTools,
    AllowedToolsChoice,
    FunctionDefinition,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
)

# The chat's names of fields, and what they are called here.
PARAMS: Final = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
}
# Nothing is stored, and nothing runs behind anybody's back.
NEEDS_A_STORE: Final = ("previous_response_id", "conversation", "prompt")
LOGPROBS: Final = "message.output_text.logprobs"
# What these add to an answer is about tools that are not served, or about reasoning that is not hidden.
INCLUDED_ANYWAY: Final = frozenset(
    {
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
        "reasoning.encrypted_content",
    }
)
TEXT_PARTS: Final = frozenset({"input_text", "output_text", "reasoning_text", "text"})


def chat_request(request: ResponsesRequest) -> ChatRequest:
    """Raises ApiError."""
    _refuse(request)
    effort = None if request.reasoning is None else request.reasoning.effort
    logprobs = wants_logprobs(request)
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=request.stop,
        stream=request.stream,
        logprobs=logprobs,
        top_logprobs=request.top_logprobs if logprobs else None,
        response_format=None if request.text is None else _response_format(request.text),
        tools=None if request.tools is None else [_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools)],
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        user=request.user,
        metadata=request.metadata,
        **shared(request, effort, False if effort == "none" else None),
    )


def wants_logprobs(request: ResponsesRequest) -> bool:
    return LOGPROBS in (request.include or ()) or bool(request.top_logprobs)


def _refuse(request: ResponsesRequest) -> None:
    for name in NEEDS_A_STORE:
        if getattr(request, name) is not None:
            raise unsupported(f"`{name}` can't be served: this server stores nothing.", name)
    if request.background:
        raise unsupported("`background` can't be served: this server stores nothing.", "background")
    if request.truncation == "auto":
        raise unsupported(
            "`truncation` can't be `auto`: this server never leaves out a part of the input.", "truncation"
        )
    for wanted in request.include or ():
        if wanted != LOGPROBS and wanted not in INCLUDED_ANYWAY:
            raise bad(f"`include` knows no `{wanted}`.", "include")


# ---------------------------------------------------------------------------------------------------- the input


def _messages(request: ResponsesRequest) -> list[Message]:
    messages = [] if request.instructions is None else [Message("system", request.instructions)]
    if isinstance(request.input, str):
        return [*messages, Message("user", request.input)]
    turn = _Turn()
    for i, item in enumerate(request.input):
        where = f"input[{i}]"
        message = _other(item, where)
        if message is None:
            messages += turn.add(item, where)
        else:
            messages += [*turn.end(), message]
    messages += turn.end()
    if not messages:
        raise bad("`input` is empty.", "input")
    return messages


class _Turn:
    """The model's turn, collected from its items."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: str | list[ContentPart] | None = None
        self._calls: list[ToolCall] = []

    def add(self, item: InputItem, where: str) -> list[Message]:
        """The turn before, if the item begins a new one."""
        ended = []
        match item.type:
            case "reasoning":
                ended = self.end() if self._content is not None or self._calls else []
                self._reasoning += [part.text or "" for part in item.content or () if isinstance(part, InputPart)]
            case "function_call":
                if item.name is None or item.call_id is None or item.arguments is None:
                    raise bad(f"{where}: a call has `name`, `call_id` and `arguments`.", "input")
                self._calls.append(ToolCall(FunctionCall(item.name, item.arguments), item.call_id))
            case _:
                ended = self.end() if self._content is not None or self._calls else []
                self._content = _content(item.content, where)
        return ended

    def end(self) -> list[Message]:
        """The turn as a message. Reasoning alone is none: nothing was said to anybody."""
        reasoning, content, calls = "".join(self._reasoning), self._content, self._calls
        self._reasoning, self._content, self._calls = [], None, []
        if content is None and not calls:
            return []
        return [Message("assistant", content, tool_calls=calls or None, reasoning_content=reasoning or None)]


def _other(item: InputItem, where: str) -> Message | None:
    """The message of an item that is not of the model's turn; None if it is."""
    match item.type:
        case "message" | None:
            if item.role is None:
                raise bad(f"{where}: a message has a `role`.", "input")
            return None if item.role == "assistant" else Message(item.role, _content(item.content, where))
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise bad(f"{where}: the output of a call has `call_id` and `output`.", "input")
            return Message("tool", _content(item.output, where), tool_call_id=item.call_id)
        case "function_call" | "reasoning":
            return None
        case "item_reference":
            raise unsupported(f"{where}: an item can't be referred to, because this server stores nothing.", "input")
        case kind:
            raise unsupported(f"{where}: items of type `{kind}` are not served.", "input")


def _content(content: str | list[InputPart] | None, where: str) -> str | list[ContentPart]:
    if content is None:
        raise bad(f"{where}: `content` is missing.", "input")
    if isinstance(content, str):
        return content
    return [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]


def _part(part: InputPart, where: str) -> ContentPart:
    if part.type == "refusal" and part.refusal is not None:
        return ContentPart("refusal", refusal=part.refusal)
    if part.type not in TEXT_PARTS:
        raise bad(f"{where}: this model reads text only, not content of type `{part.type}`.", "input")
    if part.text is None:
        raise bad(f"{where}: `text` is missing.", "input")
    return ContentPart("text", part.text)


# ---------------------------------------------------------------------------------------------------- the output


def _response_format(text: TextConfig) -> ResponseFormat | None:
    wanted = text.format
    if isinstance(wanted, responses_api.JsonSchemaFormat):
        return JsonSchemaFormat(JsonSchema(wanted.name, wanted.schema, wanted.description, wanted.strict))
    return wanted


def _tool(tool: FunctionTool, where: str) -> Tool:
    if tool.type != "function":
        raise unsupported(f"{where}: tools of type `{tool.type}` are not served; only functions are.", "tools")
    if tool.name is None:
        raise bad(f"{where}: `name` is missing.", "tools")
    return Tool(FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))


def _choice(choice: Literal["none", "auto", "required"] | ChosenTool | None) -> ToolChoice | None:
    if not isinstance(choice, ChosenTool):
        return choice
    if choice.type == "function" and choice.name is not None:
        return NamedTool(NamedFunction(choice.name))
    if choice.type == "allowed_tools" and choice.tools is not None:
        allowed = [
            AllowedTool(tool.type, None if tool.name is None else NamedFunction(tool.name)) for tool in choice.tools
        ]
        return AllowedToolsChoice(AllowedTools(choice.mode or "auto", allowed))
    raise unsupported(f"`tool_choice` of type `{choice.type}` is not served; only functions are.", "tool_choice")
