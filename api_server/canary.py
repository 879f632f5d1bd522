"""One token through the real queue: the only health check that proves that the engine still generates."""

import asyncio
import secrets
import time
from typing import Final

from msgspec import Struct, field

from api_server.engine_client import EngineClient
from api_server.errors import ApiError
from protocol.sampling import SamplingParams

CACHE_S: Final = 5.0
TIMEOUT_S: Final = 5.0


class OneToken(Struct, frozen=True):
    """The smallest request there is: a prompt of one token, one greedy token of output."""

    rid: str
    prompts: tuple[list[int], ...] = field(default_factory=lambda: ([0],))
    n: int = 1
    sampling: SamplingParams = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    seed: int = 0
    salt: bytes = b"canary"
    priority: int = 0
    meta: bytes = b""


class Canary:
    """Asks the engine for a token, at most once in five seconds, however often it is asked itself."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._checked_s = float("-inf")
        self._failure = ""

    async def failure(self) -> str:
        """Why the engine did not generate, or an empty string."""
        async with self._lock:
            if time.monotonic() - self._checked_s >= CACHE_S:
                self._failure = await self._try()
                self._checked_s = time.monotonic()
            return self._failure

    async def _try(self) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                with await self._engine.submit(OneToken(f"canary-{secrets.token_hex(16)}")) as stream:
                    await stream.take()
        except ApiError as error:
            return error.code
        except TimeoutError:
            return f"no token within {TIMEOUT_S:g} s"
        return ""
