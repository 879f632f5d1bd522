"""Every way a request can fail, as it is on the wire. What leads to each is tested where it arises."""

from collections.abc import Iterator

import msgspec
import pytest
from starlette.requests import Request

from api_server.errors import ANTHROPIC_PATH, RETRY_AFTER_S, TABLE, ApiError
from tests.api_server.live import LiveServer, endpoint

INVALID = "invalid_request_error"
PROMISED = {
    400: {"invalid_request_error": INVALID, "invalid_json": INVALID, "context_length_exceeded": INVALID,
          "unsupported_parameter": INVALID},
    401: {"invalid_api_key": INVALID},
    403: {"origin_not_allowed": INVALID},
    404: {"not_found": INVALID, "model_not_found": INVALID, "stream_not_found": INVALID, "request_not_found": INVALID},
    405: {"method_not_allowed": INVALID},
    409: {"stream_taken": INVALID},
    408: {"request_timeout": "timeout_error"},
    413: {"request_too_large": INVALID},
    415: {"unsupported_media_type": INVALID},
    422: {"request_quarantined": INVALID},
    426: {"upgrade_required": INVALID},
    429: {"queue_full": "rate_limit_error"},
    431: {"headers_too_large": INVALID},
    499: {"request_cancelled": INVALID},
    500: {"internal_error": "server_error"},
    503: {"engine_restarting": "server_error", "engine_loading": "server_error", "draining": "server_error",
          "engine_crash": "server_error"},
}  # fmt: skip
CODES = [(code, status, kind) for status, kinds in PROMISED.items() for code, kind in kinds.items()]


async def fails(request: Request) -> None:
    raise ApiError(request.query_params["code"], "So it is.", "n")


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with LiveServer([endpoint("/fails", fails), endpoint(ANTHROPIC_PATH, fails)]) as live:
        yield live


def test_there_are_no_others() -> None:
    assert {code for code, _, _ in CODES} == TABLE.keys()


@pytest.mark.parametrize(("code", "status", "kind"), CODES)
def test_each_has_its_status_its_body_and_says_when_to_try_again(
    server: LiveServer, code: str, status: int, kind: str
) -> None:
    answer = server.get(f"/fails?code={code}")
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    said = {"message": "So it is.", "type": kind, "param": "n", "code": code}
    assert msgspec.json.decode(answer.body) == {"error": said}
    again = answer.headers.get("retry-after")
    assert (again is not None) == (status in (429, 503) and code != "engine_crash")
    assert again is None or int(again) == RETRY_AFTER_S[code] > 0
    theirs = server.get(f"{ANTHROPIC_PATH}?code={code}")
    assert (theirs.status, theirs.headers.get("retry-after")) == (status, again)
    assert set(msgspec.json.decode(theirs.body)) == {"type", "error"}


def test_a_code_that_nobody_knows_is_our_bug(server: LiveServer) -> None:
    assert server.get("/fails?code=nonsense").status == 500
