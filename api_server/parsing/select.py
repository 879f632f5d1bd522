"""Which dialect a model speaks: the table of them, by name or by what the model's chat template shows.

A template tells more than a model's name: it holds the very tags that the model was trained to write. Knows of a
dialect how to recognise it, which reader reads it, and which tokens that reader has to see.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from api_server.parsing import Reader, hermes, llama, pythonic, reasoning
from api_server.parsing.content import CallsReader, ContentReader

AUTO: Final = "auto"
NONE: Final = "none"

# Models that write something else between the same tags: Qwen3-Coder, GLM, Hunyuan.
_OTHER_IN_TOOL_CALL: Final = ("<function=", "<arg_key>", "<tool_sep>")
_PYTHONIC: Final = re.compile(r"\[\w+\(\w+=")  # as in "[func_name1(params_name1=params_value1, ...)]"


@dataclass(frozen=True, slots=True)
class ToolDialect:
    """A way to write calls. `reader` takes the names of the tools and how many calls there may be; `visible` are the
    tags that detokenisation must not hide, where they are special tokens."""

    name: str
    reader: Callable[[Collection[str], int | None], Reader]
    visible: frozenset[str]
    suits: Callable[[str], bool]  # the chat template


@dataclass(frozen=True, slots=True)
class ReasoningDialect:
    """A way to write thoughts. `eager` is for models whose thought begins with the answer even where neither they nor
    the prompt write the opening tag."""

    name: str
    visible: frozenset[str]
    eager: bool

    def opened(self, prompt_tail: str) -> bool:
        """Whether an answer to this prompt begins inside a thought. The last line or two of the prompt are enough."""
        return opens_thought(prompt_tail) or (self.eager and not closes_thought(prompt_tail))


Dialect = TypeVar("Dialect", ToolDialect, ReasoningDialect)


def opens_thought(prompt_tail: str) -> bool:
    """Whether the prompt ends with the opening tag."""
    return prompt_tail.rstrip().endswith(reasoning.OPEN)


def closes_thought(prompt_tail: str) -> bool:
    """Whether the prompt ends with a thought that is over already, which is how templates switch thinking off."""
    return prompt_tail.rstrip().endswith(reasoning.CLOSE)


def _shows_hermes(template: str) -> bool:
    others = any(mark in template for mark in _OTHER_IN_TOOL_CALL)
    return hermes.OPEN in template and '"arguments"' in template and not others


def _shows_llama(template: str) -> bool:
    return (llama.PYTHON_TAG in template or "ipython" in template) and '"parameters"' in template


def _shows_pythonic(template: str) -> bool:
    return _PYTHONIC.search(template) is not None


# In the order in which a template is tried: the pythonic ones of Llama mention ipython as well.
_TOOLS: Final = (
    ToolDialect(
        "hermes",
        lambda names, max_calls: hermes.HermesReader(max_calls),
        frozenset({hermes.OPEN, hermes.CLOSE}),
        _shows_hermes,
    ),
    ToolDialect(
        "pythonic",
        pythonic.PythonicReader,
        frozenset({pythonic.PYTHON_START, pythonic.PYTHON_END, pythonic.PYTHON_TAG}),
        _shows_pythonic,
    ),
    ToolDialect("llama3_json", llama.LlamaReader, frozenset({llama.PYTHON_TAG}), _shows_llama),
)
_THINK_TAGS: Final = frozenset({reasoning.OPEN, reasoning.CLOSE})
_THINK: Final = ReasoningDialect("think", _THINK_TAGS, eager=False)
_REASONING: Final = (
    _THINK,
    ReasoningDialect("qwen3", _THINK_TAGS, eager=False),
    ReasoningDialect("deepseek_r1", _THINK_TAGS, eager=True),
)

TOOL_PARSERS: Final = (AUTO, NONE, *(dialect.name for dialect in _TOOLS))
REASONING_PARSERS: Final = (AUTO, NONE, *(dialect.name for dialect in _REASONING))
WITHOUT_DIALECT: Final = _TOOLS[0]  # what forced calls are written in by a model that has no dialect


def tool_dialect(parser: str, template: str | None) -> ToolDialect | None:
    """The dialect that the option `parser` names; of `auto` the one that the chat template shows, if it shows any.

    Raises ValueError for a name that is not in TOOL_PARSERS.
    """
    if parser == AUTO:
        return next((dialect for dialect in _TOOLS if template and dialect.suits(template)), None)
    return _named(parser, _TOOLS, TOOL_PARSERS)


def reasoning_dialect(parser: str, template: str | None) -> ReasoningDialect | None:
    """As `tool_dialect`, of REASONING_PARSERS."""
    if parser == AUTO:
        return _THINK if template and any(tag in template for tag in _THINK_TAGS) else None
    return _named(parser, _REASONING, REASONING_PARSERS)


def reader(
    tools: ToolDialect | None,
    names: Collection[str] = (),
    *,
    max_calls: int | None = None,
    calls_alone: bool = False,
    opened: bool | None = None,
) -> Reader:
    """The reader of one choice's text. Without `tools` there are no calls in it, and with `calls_alone` nothing else.
    `opened` says whether it begins inside a thought, and is None for a model that does not think."""
    inner: Reader = ContentReader() if tools is None else tools.reader(names, max_calls)
    if calls_alone:
        inner = CallsReader(inner)
    return inner if opened is None else reasoning.ReasoningReader(inner, opened=opened)


def _named(name: str, dialects: tuple[Dialect, ...], names: tuple[str, ...]) -> Dialect | None:
    if name not in names:
        raise ValueError(f"{name} is none of {', '.join(names)}")
    return next((dialect for dialect in dialects if dialect.name == name), None)
