"""Work behind a whole-body response ends when its client leaves."""

import asyncio
import threading

from starlette.requests import Request
from starlette.responses import Response

from api_server.body import read_body
from api_server.disconnect import until_disconnect
from api_server.errors import ApiError
from tests.api_server.live import LiveServer, endpoint


class Work:
    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()

    async def endless(self) -> bytes:
        try:
            self.began.set()
            await asyncio.Event().wait()
            return b""
        finally:
            self.ended.set()

    async def handler(self, request: Request) -> Response:
        await read_body(request)
        return Response(await until_disconnect(request, self.endless()))


async def seven() -> bytes:
    await asyncio.sleep(0)
    return b"7"


async def failing() -> bytes:
    raise ApiError("queue_full", "later")


def test_the_result_is_the_works() -> None:
    async def handler(request: Request) -> Response:
        await read_body(request)
        return Response(await until_disconnect(request, seven()))

    with LiveServer([endpoint("/work", handler)]) as server:
        assert server.post("/work", b"{}").body == b"7"


def test_so_is_the_error() -> None:
    async def handler(request: Request) -> Response:
        return Response(await until_disconnect(request, failing()))

    with LiveServer([endpoint("/work", handler)]) as server:
        answer = server.get("/work")
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")


def test_leaving_cancels_the_work() -> None:
    work = Work()
    with LiveServer([endpoint("/work", work.handler)]) as server:
        with server.connect() as client:
            client.send(b"POST /work HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
            assert work.began.wait(5)
            assert not work.ended.is_set()
        assert work.ended.wait(5)


def test_so_does_shutdown_and_the_client_is_told() -> None:
    work = Work()
    with LiveServer([endpoint("/work", work.handler)], shutdown_timeout_s=0.1) as server, server.connect() as client:
        client.send(b"POST /work HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        assert work.began.wait(5)
        server.stop()
        answer = client.answer()
        server.join()
    assert (answer.status, work.ended.is_set()) == (503, True)
    assert b"draining" in answer.body
