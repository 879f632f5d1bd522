"""One token through the real queue: the only health check that proves that the engine still generates."""

import asyncio
import secrets
import time
from typing import Final

from api_server.engine_client import EngineClient
from api_server.errors import ApiError
from api_server.submission import Submission
from protocol.sampling import SamplingParams

CACHE_S: Final = 5.0
TIMEOUT_S: Final = 5.0
MOST_URGENT: Final = -(2**31)  # the lowest priority number there is


def one_token() -> Submission:
    """The smallest request there is: a prompt of one token, one greedy token of output, and before all others."""
    return Submission(
        rid=f"canary-{secrets.token_hex(16)}",
        prompts=[[0]],
        n=1,
        sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
        seed=0,
        salt=b"canary",
        priority=MOST_URGENT,
    )


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
                with await self._engine.submit(one_token()) as stream:
                    await stream.take()
        except ApiError as error:
            # An engine that works through a full queue is as healthy as one can be.
            return "" if error.code == "queue_full" and self._engine.ready else error.code
        except TimeoutError:
            return f"no token within {TIMEOUT_S:g} s"
        return ""
