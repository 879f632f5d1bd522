"""What one frontend process holds: its settings, its engine, and whether it is on its way out."""

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from starlette.requests import HTTPConnection

from api_server.admission import Admission
from api_server.answers import Answers
from api_server.canary import Canary
from api_server.config import Config
from api_server.drain import Drain
from api_server.encode import THREADS
from api_server.engine_client import EngineClient
from api_server.errors import ApiError
from api_server.ledger import Ledger
from api_server.metrics import MetricsPage
from protocol.messages import Limits, ModelCard

logger: Final = logging.getLogger("tokenwire.frontend")

ENGINE_WAIT_S: Final = 5.0  # how long a request waits for an engine that starts again


class Frontend:
    """The state behind every route. Made once per process, by the app."""

    def __init__(self, config: Config, engine: EngineClient, templates: Iterable[str]) -> None:
        """`templates` are the paths of its routes."""
        self.config = config
        self.engine = engine
        self.drain = Drain()
        self.canary = Canary(engine)
        self.answers = Answers(engine.tallies, templates)
        self.ledger = Ledger(engine)
        self.metrics = MetricsPage(self.ledger, config.model_name)
        self._admission: Admission | None = None
        self._made_from: tuple[ModelCard, Limits] | None = None
        self._making = asyncio.Lock()
        self._warming: asyncio.Task[None] | None = None

    @property
    def draining(self) -> bool:
        return self.drain.draining

    async def start(self) -> None:
        """Connects to the engine, whenever it is there, and then loads its tokenizer before a request asks for it. A
        successor waits for all of that."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "long-prompt"))
        self.ledger.start(self.config.board_fd)
        await self.engine.start()
        self._warming = asyncio.create_task(self._warm())
        if self.config.successor:
            await self._warming
            if self._admission is None:
                raise RuntimeError("requests can't be served, see above; the frontend before this one goes on serving")

    async def close(self) -> None:
        if self._warming is not None:
            self._warming.cancel()
            with suppress(asyncio.CancelledError):
                await self._warming
        self.engine.close()
        self.ledger.close()

    async def admission(self) -> Admission:
        """The way from a request to tokens, for the engine that is there now.

        Waits a moment for one that is not; raises ApiError engine_loading or engine_restarting if it does not come.
        """
        await self.engine.wait_ready(ENGINE_WAIT_S)
        card, limits = self.engine.card, self.engine.limits
        if card is None or limits is None:
            raise ApiError("engine_loading", "The model is still being loaded.")
        if self._admission is not None and self._made_from == (card, limits):
            return self._admission
        async with self._making:
            if self._admission is None or self._made_from != (card, limits):
                # A large tokenizer takes a second to parse; other requests and /livez go on meanwhile.
                self._admission = await asyncio.to_thread(
                    Admission,
                    card,
                    limits,
                    queue_full=lambda: self.engine.load.full,
                    tool_parser=self.config.tool_call_parser,
                    reasoning_parser=self.config.reasoning_parser,
                )
                self._made_from = (card, limits)
            return self._admission

    async def _warm(self) -> None:
        while self._admission is None:
            try:
                await self.admission()
            except ApiError:
                continue  # not there yet; each try has waited
            except Exception:
                logger.exception("what the engine told of its model can't be used")
                return


def frontend(connection: HTTPConnection) -> Frontend:
    """The process's Frontend, from any request."""
    found = connection.app.state.frontend
    assert isinstance(found, Frontend)
    return found
