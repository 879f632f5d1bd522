"""Anthropic's POST /v1/messages as a chat request.

The results of tools are blocks of the user's message here, and messages of their own in a chat.
"""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from api_server.chat import SEPARATOR
from api_server.dialects import bad, shared, unsupported
from api_server.schema.anthropic import (
    Block,
    ClientTool,
    CountRequest,
    InputMessage,
    JsonFormat,
    MessagesRequest,
    OutputConfig,
    ToolUseChoice,
)
from api_server.schema.formats import JsonSchema, JsonSchemaFormat
from api_server.schema.messages import ContentPart, FunctionCall, Message, ToolCall
from api_server.schema.requests import ChatRequest
from api_server.schema.tools import FunctionDefinition, NamedFunction, NamedTool, Tool, ToolChoice

# The chat's names of fields, and what they are called here.
PARAMS: Final = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config",
    "parallel_tool_calls": "tool_choice",
    "continue_final_message": "messages",
    "add_generation_prompt": "messages",
}
CHOICES: Final[dict[str, Literal["auto", "required", "none"]]] = {"auto": "auto", "any": "required", "none": "none"}
FORMAT_NAME: Final = "output"  # which has none here
ERROR: Final = "Error: "  # before a result that is one, because a chat has no other place to say so


def chat_request(request: CountRequest) -> ChatRequest:
    """What is generated, or would be if the request asked for more than a count. Raises ApiError."""
    config, choice = request.output_config or OutputConfig(), request.tool_choice
    thinks = None if request.thinking is None else request.thinking.type != "disabled"
    chat = ChatRequest(
        model=request.model,
        messages=_messages(request),
        continue_final_message=request.messages[-1].role == "assistant",
        response_format=None if config.format is None else _response_format(config.format),
        tools=None if request.tools is None else [_tool(tool, f"tools.{i}") for i, tool in enumerate(request.tools)],
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        **shared(request, config.effort, thinks),
    )
    if not isinstance(request, MessagesRequest):
        return chat
    return replace(
        chat,
        max_completion_tokens=request.max_tokens,
        stop=request.stop_sequences,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        user=None if request.metadata is None else request.metadata.user_id,
    )


# ---------------------------------------------------------------------------------------------------- the messages


def _messages(request: CountRequest) -> list[Message]:
    messages = [] if request.system is None else [Message("system", _text(request.system, "system"))]
    for i, message in enumerate(request.messages):
        where = f"messages.{i}"
        if message.role == "assistant":
            messages.append(_assistant(message, where))
        else:
            messages += _others(message, where)
    if messages[-1].role == "assistant" and messages[-1].tool_calls:
        raise bad(
            f"messages.{len(request.messages) - 1}: a call needs its `tool_result` in the next message.", "messages"
        )
    return messages


def _assistant(message: InputMessage, where: str) -> Message:
    if isinstance(message.content, str):
        return Message("assistant", message.content)
    parts, thoughts, calls = [], [], []
    for j, block in enumerate(message.content):
        match block.type:
            case "thinking":
                thoughts.append(block.thinking or "")
            case "redacted_thinking":
                pass  # what it hides only its maker can read
            case "tool_use":
                calls.append(_call(block, f"{where}.content.{j}"))
            case _:
                parts.append(_part(block, f"{where}.content.{j}"))
    content = parts or (None if calls else "")
    return Message("assistant", content, tool_calls=calls or None, reasoning_content="".join(thoughts) or None)


def _others(message: InputMessage, where: str) -> Iterator[Message]:
    """A user's message, or one of the system's: results of tools become messages of their own, in order."""
    if isinstance(message.content, str):
        yield Message(message.role, message.content)
        return
    parts: list[ContentPart] = []
    for j, block in enumerate(message.content):
        at = f"{where}.content.{j}"
        if block.type != "tool_result":
            parts.append(_part(block, at))
            continue
        if parts:
            yield Message(message.role, parts)
            parts = []
        yield _result(block, at)
    if parts or not message.content:
        yield Message(message.role, parts)


def _result(block: Block, where: str) -> Message:
    if block.tool_use_id is None:
        raise bad(f"{where}.tool_use_id: Field required", "messages")
    content = _text(block.content or "", f"{where}.content")
    if block.is_error:
        text = content if isinstance(content, str) else SEPARATOR.join(part.text or "" for part in content)
        content = ERROR + text
    return Message("tool", content, tool_call_id=block.tool_use_id)


def _call(block: Block, where: str) -> ToolCall:
    if block.id is None or block.name is None or block.input is None:
        raise bad(f"{where}: a call has `id`, `name` and `input`.", "messages")
    return ToolCall(FunctionCall(block.name, msgspec.json.encode(block.input).decode()), block.id)


def _text(content: str | list[Block], where: str) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    return [_part(block, f"{where}.{i}") for i, block in enumerate(content)]


def _part(block: Block, where: str) -> ContentPart:
    if block.type != "text":
        raise bad(f"{where}: this model reads text only, not content of type `{block.type}`.", where.partition(".")[0])
    if block.text is None:
        raise bad(f"{where}.text: Field required", where.partition(".")[0])
    return ContentPart("text", block.text)


# ---------------------------------------------------------------------------------------------------- the tools


def _tool(tool: ClientTool, where: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise unsupported(f"{where}: tools of type `{tool.type}` are not served; only the client's own are.", "tools")
    if tool.input_schema is None:
        raise bad(f"{where}.input_schema: Field required", "tools")
    return Tool(FunctionDefinition(tool.name, tool.description, tool.input_schema, tool.strict))


def _choice(choice: ToolUseChoice) -> ToolChoice:
    if choice.type != "tool":
        return CHOICES[choice.type]
    if choice.name is None:
        raise bad("tool_choice.name: Field required", "tool_choice")
    return NamedTool(NamedFunction(choice.name))


def _response_format(wanted: JsonFormat) -> JsonSchemaFormat:
    return JsonSchemaFormat(JsonSchema(FORMAT_NAME, wanted.schema, strict=True))
