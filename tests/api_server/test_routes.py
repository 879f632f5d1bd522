"""The table, and what becomes of methods that are not in it."""

import json

import pytest
from starlette.requests import Request
from starlette.responses import Response

from api_server.routes import API, HEALTH, Endpoint, make_routes
from tests.api_server.live import LiveServer

STREAM = "/v1/completions/stream"


async def one(request: Request) -> Response:
    return Response("one")


async def other(request: Request) -> Response:
    return Response("other")


TABLE = (Endpoint("/both", ("POST",), one, "one"), Endpoint("/both", ("GET",), other, "other"))


def test_a_path_is_one_route_that_goes_by_the_method() -> None:
    [route] = make_routes(TABLE)
    assert route.methods == {"GET", "POST"}
    with LiveServer(TABLE) as server:
        assert (server.post("/both", b"").body, server.get("/both").body) == (b"one", b"other")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(STREAM, {"GET", "POST"}), ("/v1/chat/completions", {"POST"}), ("/v1/models", {"GET", "HEAD"})],
)
def test_a_405_names_all_methods_that_the_path_has(path: str, allowed: set[str]) -> None:
    with LiveServer(API) as server:
        answer = server.ask(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert json.loads(answer.body)["error"]["code"] == "method_not_allowed"


def test_head_generates_nowhere() -> None:
    routes = make_routes((*HEALTH, *API))
    assert len({route.path for route in routes}) == len(routes)
    served = {route.path for route in routes if "HEAD" in (route.methods or ())}
    assert served == {endpoint.path for endpoint in HEALTH} | {"/v1/models", "/v1/models/{id:path}"}
