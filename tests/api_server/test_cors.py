"""What a browser needs to see, on the policy and on every kind of response of a live server."""

import json
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from api_server.cors import Cors
from tests.api_server.live import Answer, LiveServer, endpoint

OWN = "https://a.example"
FOREIGN = "https://b.example"
ALLOWED = "access-control-allow-origin"


async def broken(request: Request) -> Response:
    raise ZeroDivisionError


def scope(method: str = "GET", **headers: str) -> Scope:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": "/", "headers": pairs}


def asks(origin: str) -> Scope:
    return scope("OPTIONS", origin=origin, access_control_request_method="POST")


def test_without_origins_it_is_off() -> None:
    assert Cors(()).headers(scope(origin=OWN)) == []
    assert Cors(()).preflight(asks(OWN)) is None


def test_only_listed_origins_are_named_and_caches_are_told_that_it_depends() -> None:
    cors = Cors([OWN])
    assert dict(cors.headers(scope(origin=OWN)))[ALLOWED.encode()] == OWN.encode()
    for other in (scope(origin=FOREIGN), scope(origin=OWN + ".evil"), scope()):
        assert cors.headers(other) == [(b"vary", b"Origin")]


def test_an_origin_may_be_written_as_people_write_addresses() -> None:
    assert dict(Cors(["https://A.example/"]).headers(scope(origin=OWN)))[ALLOWED.encode()] == OWN.encode()


def test_a_star_is_everyone() -> None:
    assert dict(Cors(["*"]).headers(scope(origin=FOREIGN)))[ALLOWED.encode()] == b"*"
    assert isinstance(Cors(["*"]).preflight(asks(FOREIGN)), Response)


def test_a_preflight_is_options_with_an_origin_and_a_method() -> None:
    cors = Cors([OWN])
    assert cors.preflight(asks(OWN)) is not None
    for other in (
        scope("POST", origin=OWN, access_control_request_method="POST"),
        scope("OPTIONS", origin=OWN),
        scope("OPTIONS", access_control_request_method="POST"),
    ):
        assert cors.preflight(other) is None


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer([endpoint("/broken", broken)], cors_origins=(OWN,), api_keys=("k",)) as live:
        yield live


def preflight(server: LiveServer, origin: str) -> Answer:
    wants = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization, x-mine\r\n"
    return server.ask(f"OPTIONS /broken HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n{wants}\r\n".encode())


def test_a_preflight_needs_no_key_and_lets_every_header_through(server: LiveServer) -> None:
    answer = preflight(server, OWN)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers[ALLOWED] == OWN
    assert answer.headers["access-control-allow-headers"] == "authorization, x-mine"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert answer.headers["x-request-id"]


def test_a_foreign_preflight_gets_the_error_body_and_no_leave(server: LiveServer) -> None:
    answer = preflight(server, FOREIGN)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert json.loads(answer.body)["error"]["code"] == "invalid_request_error"
    assert not any(name.startswith("access-control-") for name in answer.headers)


@pytest.mark.parametrize(
    ("target", "key", "status"),
    [("/broken", "k", 500), ("/broken", "wrong", 401), ("/nothing", "k", 404), ("/livez", "", 200)],
)
def test_every_answer_can_be_read_by_the_page(server: LiveServer, target: str, key: str, status: int) -> None:
    answer = server.get(target, f"Origin: {OWN}\r\nX-Api-Key: {key}\r\n")
    assert (answer.status, answer.headers[ALLOWED]) == (status, OWN)
    assert "X-Stream-Id" in answer.headers["access-control-expose-headers"]
    assert ALLOWED not in server.get(target, f"Origin: {FOREIGN}\r\nX-Api-Key: {key}\r\n").headers
