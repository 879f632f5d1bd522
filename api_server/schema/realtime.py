"""What a client says on WS /v1/ws."""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

MAX_ID_CHARS = 128

GenerationId = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]


class SocketMessage(Struct, frozen=True):
    """`id` is the client's own name for a generation. `body`, for generate, is that of /v1/chat/completions or
    /v1/completions."""

    type: Literal["generate", "cancel"]
    id: GenerationId
    body: Raw = Raw()


ABSENT = (Raw(), Raw(b"null"))


class GenerationKind(Struct, frozen=True):
    """Enough of a body to tell which route's it is."""

    messages: Raw = Raw()
    prompt: Raw = Raw()
