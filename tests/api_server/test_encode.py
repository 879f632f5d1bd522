import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import Response

from api_server.encode import INLINE_CHARS, THREADS, off_loop
from api_server.server import SWITCH_S
from tests.api_server.live import DEADLINE_S, LiveServer, endpoint, until


def test_what_is_large_leaves_the_loop() -> None:
    async def main() -> tuple[int, int]:
        return await off_loop(INLINE_CHARS, threading.get_ident), await off_loop(INLINE_CHARS + 1, threading.get_ident)

    here, elsewhere = asyncio.run(main())
    assert here == threading.get_ident() != elsewhere


def test_so_many_at_once_and_the_loop_goes_on() -> None:
    go, begun = threading.Event(), []

    def work() -> str:
        begun.append(threading.get_ident())
        assert go.wait(DEADLINE_S)
        return "done"

    async def handler(request: Request) -> Response:
        return Response(await off_loop(INLINE_CHARS + 1, work))

    requests = THREADS + 2
    with LiveServer([endpoint("/long", handler)]) as server, ThreadPoolExecutor(requests) as clients:
        answers = [clients.submit(server.get, "/long") for _ in range(requests)]
        until(lambda: len(begun) == THREADS)
        assert server.get("/livez").status == 200
        assert len(begun) == THREADS
        go.set()
        assert [answer.result().body for answer in answers] == [b"done"] * requests
        assert sys.getswitchinterval() == SWITCH_S
    assert len(set(begun)) == THREADS
