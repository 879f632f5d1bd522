"""What anybody would write first, to compare with: Starlette's StreamingResponse, a queue per stream and json.dumps per
token. Tokens come from a timer in the same process, so that there is nothing to receive or to detokenise.

`python -m tests.benchmarks.naive PORT PERIOD`, in seconds.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

WORDS = ("Once", " upon", " a", " time", " a", " small", " fox", " lived", " at", " the", " edge", " of", " it", ".")
queues: "set[asyncio.Queue[str]]" = set()


async def emit(period_s: float) -> None:
    due_s = time.monotonic()
    for word in cycle(WORDS):
        due_s = max(due_s + period_s, time.monotonic())
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        for queue in queues:
            queue.put_nowait(word)


async def chat(request: Request) -> Response:
    body = json.loads(await request.body())
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)

    async def events() -> AsyncIterator[str]:
        try:
            for _ in range(body["max_tokens"]):
                delta = {"index": 0, "delta": {"content": await queue.get()}, "logprobs": None, "finish_reason": None}
                chunk = {
                    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
                    "object": "chat.completion.chunk",
                    "created": 1_700_000_000,
                    "model": "made-up",
                    "system_fingerprint": "fp_0123456789",
                    "choices": [delta],
                    "usage": None,
                }
                yield f"data: {json.dumps(chunk)}\n\n"
        finally:
            queues.discard(queue)

    return StreamingResponse(events(), media_type="text/event-stream")


def ready(request: Request) -> Response:
    return Response()


def main() -> None:
    port, period = sys.argv[1:]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(emit(float(period)))
        yield
        task.cancel()

    routes = [Route("/v1/chat/completions", chat, methods=["POST"]), Route("/readyz", ready)]
    app = Starlette(routes=routes, lifespan=lifespan)
    uvicorn.run(app, port=int(port), log_level="error", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
