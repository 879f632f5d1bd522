"""Whatever stands where a number may: only 200 or a 4xx, told as an error, and the same engine afterwards.

The fields come from the types of the routes, so that a new route or field is tested by itself.
"""

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api_server.errors import TABLE
from api_server.routes import API, Endpoint
from tests.api_server.sockets import SocketClient
from tests.e2e.numbers import places
from tests.e2e.server import Server

EXAMPLES = 4  # per route, beside those that are for every field; each is some numbers, dealt out to all fields
FOR_ALL = ["NaN", "Infinity", "-Infinity", "9223372036854775808", "true", "1e400"]
NASTY = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "5e-324", "1e-400", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551616", "1" + "0" * 400,
    "-0.0", "-0", "-1", "0", "1", "2", "1.0", "0.5", "1e0", "true", "false", "null", '"1"', '"NaN"', '""', "[]", "{}",
    "01", "+1", "1_000", "0x10", ".5", "1.",
)  # fmt: skip
LITERALS = st.lists(
    st.one_of(
        st.sampled_from(NASTY),
        st.integers().map(str),
        st.integers(-(2**70), 2**70).map(str),
        st.floats().map(lambda value: json.dumps(value)),
    ),
    min_size=3,
    max_size=9,
    unique=True,
)
# Whatever max_tokens is, one token comes and ends the answer; and if it isn't that one, there are few.
FEW_TOKENS = {"allowed_token_ids": "[300]", "stop_token_ids": "[300]", "max_tokens": "2", "max_output_tokens": "2"}
BODIES = [endpoint for endpoint in API if endpoint.operation is not None and endpoint.operation.takes is not None]
SOCKET_BODIES = [endpoint for endpoint in BODIES if endpoint.name in ("chat_completions", "completions")]
QUERIES = [endpoint for endpoint in API if endpoint.operation is not None and endpoint.operation.query is not None]


class Line:
    """A connection that is kept: most of what is asked here is refused sooner than a new one is made."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        self._connection.request(method, path, None if body is None else body.encode())
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    made, epoch = Line(server.port), server.engine()["epoch"]
    yield made
    made.close()
    assert server.engine()["epoch"] == epoch
    assert server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 1}).status == 200


def check(status: int, text: str, asked: str) -> None:
    assert status == 200 or 400 <= status < 500, (asked, status, text)
    if status != 200:
        assert json.loads(text)["error"]["message"], asked
    elif text.startswith("data:"):
        last = [piece for piece in text.split("\n") if piece.startswith("data:")][-1]
        assert last == "data: [DONE]" or refused(json.loads(last.removeprefix("data: "))), (asked, text)


def refused(event: Any) -> bool:
    """An error that is the request's own, found once its stream had begun."""
    return TABLE[event["error"]["code"]][0] < 500


def test_there_is_something_to_test() -> None:
    operation: Any = BODIES[0].operation
    assert {"temperature", "logit_bias{key}", "tools[].function.parameters{}"} <= places(operation.takes).keys()
    assert QUERIES
    assert len(SOCKET_BODIES) == 2


def top(place: str) -> str:
    """The request's own field of a place."""
    return place.partition(".")[0].partition("[")[0].partition("{")[0]


def bodies(endpoint: Endpoint, literals: list[str]) -> Iterator[str]:
    """One for each place of a number."""
    operation: Any = endpoint.operation
    known = {field.encode_name for field in msgspec.structs.fields(operation.takes)}
    base = {name: json.dumps(value) for name, value in operation.example.items()}
    base |= {name: text for name, text in FEW_TOKENS.items() if name in known}
    for number, (place, writer) in enumerate(places(operation.takes).items()):
        members = {**base, top(place): writer(literals[number % len(literals)])}
        yield "{" + ", ".join(f'"{name}": {text}' for name, text in members.items()) + "}"


def numbers(test: Callable[..., None]) -> Callable[..., None]:
    """Gives a test `literals`, in turn so that every field gets each of FOR_ALL."""
    for first in range(len(FOR_ALL)):
        test = example(literals=FOR_ALL[first:] + FOR_ALL[:first])(test)
    return settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))(given(literals=LITERALS)(test))


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.name)
@numbers
def test_any_number_in_a_body(line: Line, endpoint: Endpoint, literals: list[str]) -> None:
    for body in bodies(endpoint, literals):
        check(*line.ask("POST", endpoint.path, body), body)


@pytest.mark.parametrize("endpoint", QUERIES, ids=lambda endpoint: endpoint.name)
@numbers
def test_any_number_in_a_query(line: Line, endpoint: Endpoint, literals: list[str]) -> None:
    operation: Any = endpoint.operation
    for number, name in enumerate(dict.fromkeys(map(top, places(operation.query)))):
        given = {"prompt": "Hello", "max_tokens": "1", name: literals[number % len(literals)].strip('"')}
        target = f"{endpoint.path}?{urlencode(given)}"
        check(*line.ask("GET", target), target)


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize("endpoint", SOCKET_BODIES, ids=lambda endpoint: endpoint.name)
@numbers
def test_any_number_on_a_socket(server: Server, endpoint: Endpoint, literals: list[str]) -> None:
    """What is no JSON is no message: then the error is nobody's, and the next message has its answer."""
    with SocketClient(server.port) as client:
        for body in bodies(endpoint, literals):
            client.say(f'{{"type": "generate", "id": "a", "body": {body}}}')
            while (heard := client.hear())["type"] == "chunk":
                assert heard["id"] == "a"
            assert heard == {"type": "done", "id": "a"} or refused(heard), (body, heard)
