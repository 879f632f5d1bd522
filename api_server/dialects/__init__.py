"""Other APIs' requests as chat requests. What a dialect can't say in a chat request it refuses, and names the field.

Pure; knows nothing of models, prompts or answers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from api_server.errors import ApiError
from api_server.schema.extensions import Extensions


@contextmanager
def named(params: Mapping[str, str]) -> Iterator[None]:
    """Refusals of a chat request name the fields that it was made from: `params` maps the chat's names to those."""
    try:
        yield
    except ApiError as error:
        raise ApiError(error.code, error.message, error.param and params.get(error.param, error.param)) from None


def shared(request: Extensions, effort: str | None, thinks: bool | None) -> dict[str, Any]:
    """The extension parameters, by name. A chat template is told how much to think by the names that templates have
    for it, unless the request says it itself."""
    told = {"reasoning_effort": effort, "enable_thinking": thinks}
    kwargs = {name: value for name, value in told.items() if value is not None} | (request.chat_template_kwargs or {})
    values = {name: getattr(request, name) for name in Extensions.__struct_fields__}
    return values | {"chat_template_kwargs": kwargs or None}


def bad(message: str, param: str) -> ApiError:
    return ApiError("invalid_request_error", message, param)


def unsupported(message: str, param: str) -> ApiError:
    return ApiError("unsupported_parameter", message, param)
