"""A live frontend with all its routes before a real engine core, whose device alone is made up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api_server.routes import API
from protocol.messages import ModelCard
from tests.api_server.live import LiveServer, until
from tests.api_server.vocabularies import byte_level, card
from tests.fakes import MadeUpDevice, MadeUpEngine

CARD = card(byte_level())


@contextmanager
def serving(
    path: Path, device: MadeUpDevice | None = None, *, card: ModelCard = CARD, num_blocks: int = 257, **settings: Any
) -> Iterator[tuple[LiveServer, MadeUpEngine]]:
    """`path` is a folder for the socket between the two; `settings` are the frontend's."""
    endpoint = f"ipc://{path}/e.sock"
    with (
        MadeUpEngine(endpoint, device=device, card=card, num_blocks=num_blocks) as engine,
        LiveServer(API, engine=endpoint, **settings) as server,
    ):
        key = "".join(f"X-Api-Key: {key}\r\n" for key in settings.get("api_keys", ())[:1])
        until(lambda: server.get("/v1/models", key).status == 200)  # the two have met
        yield server, engine
