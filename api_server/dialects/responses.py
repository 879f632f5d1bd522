"""POST /v1/responses as a chat request.

A turn of the model is one message of a chat, but several items here: its reasoning, its text, its calls.
"""

from typing import Final

from api_server.dialects import bad, shared, unsupported
from api_server.schema import responses_api
from api_server.schema.formats import JsonSchema, JsonSchemaFormat, ResponseFormat
from api_server.schema.messages import ContentPart, FunctionCall, Message, ToolCall
from api_server.schema.requests import ChatRequest
from api_server.schema.responses_api import (
    AllowedFunctions,
    ChosenFunction,
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
NEED_A_STORE: Final = ("previous_response_id", "conversation", "prompt", "background")
LOGPROBS: Final = "message.output_text.logprobs"
TEXT_PARTS: Final = frozenset({"input_text", "output_text", "reasoning_text", "text"})


def chat_request(request: ResponsesRequest) -> ChatRequest:
    """Raises ApiError."""
    for name in NEED_A_STORE:
        if getattr(request, name) not in (None, False):
            raise unsupported(f"`{name}` can't be served: this server stores nothing.", name)
    effort = None if request.reasoning is None else request.reasoning.effort
    logprobs = LOGPROBS in (request.include or ()) or bool(request.top_logprobs)
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
        """The turn before, if the item begins a new one: once something was said, only calls go on with it."""
        if item.type == "function_call":
            if item.name is None or item.call_id is None or item.arguments is None:
                raise bad(f"{where}: a call has `name`, `call_id` and `arguments`.", "input")
            self._calls.append(ToolCall(FunctionCall(item.name, item.arguments), item.call_id))
            return []
        ended = self.end() if self._content is not None or self._calls else []
        if item.type == "reasoning":
            self._reasoning += [part.text or "" for part in item.content or () if isinstance(part, InputPart)]
        else:
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


def _choice(choice: responses_api.ToolChoice | None) -> ToolChoice | None:
    match choice:
        case "auto":
            return None  # which goes without saying, and here also where there are no tools
        case ChosenFunction(name):
            return NamedTool(NamedFunction(name))
        case AllowedFunctions(mode, tools):
            allowed = [AllowedTool("function", NamedFunction(tool.name)) for tool in tools]
            return AllowedToolsChoice(AllowedTools(mode, allowed))
        case _:
            return choice
