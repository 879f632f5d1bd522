"""The routes from body to bytes, in process: a scripted engine behind the real app. Sockets are in tests/e2e."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pytest

from api_server.app import create_app
from api_server.config import Config
from api_server.deadline import Deadline
from api_server.errors import ApiError
from api_server.render.chat import ChatRenderer
from api_server.reply import Chunks
from api_server.submission import Submission
from api_server.teller import Teller
from protocol.messages import Delta, FinishReason, FirstToken, Load
from tests.api_server.vocabularies import LIMITS, byte_level, card, job

TOKENIZER = byte_level()
END = TOKENIZER.token_to_id("<|end|>")
ANSWER = [*TOKENIZER.encode("Hello world, the end", add_special_tokens=False).ids, END]
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class ScriptedStream:
    """Gives every sequence one token of ANSWER per take. `fails` ends it after so many; `hangs` never gives any."""

    size: int
    max_tokens: int
    fails: int | None = None
    hangs: Callable[[], None] | None = None  # called when it begins to
    stops: list[tuple[int, int]] = field(default_factory=list)
    closed: int = 0
    pos: int = 0

    async def take(self) -> list[tuple[int, Delta]]:
        await asyncio.sleep(0)
        if self.hangs is not None:
            self.hangs()
            await asyncio.get_running_loop().create_future()
        if self.fails == self.pos:
            raise ApiError("engine_crash", "The engine died of this request.")
        pos = self.pos
        self.pos += 1
        finish = FinishReason.STOP if ANSWER[pos] == END else None
        if finish is None and self.pos == self.max_tokens:
            finish = FinishReason.LENGTH
        first = FirstToken(0.0, 0.002, 1) if pos == 0 else None
        return [(index, Delta(index, pos, [ANSWER[pos]], finish, first=first)) for index in range(self.size)]

    def stop(self, index: int, pos: int) -> None:
        self.stops.append((index, pos))

    def close(self) -> None:
        self.closed += 1

    leave = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ScriptedEngine:
    def __init__(self) -> None:
        self.card = card(TOKENIZER)
        self.limits = LIMITS
        self.load = Load()
        self.refusal: ApiError | None = None
        self.fails: int | None = None
        self.hangs: Callable[[], None] | None = None
        self.streams: list[ScriptedStream] = []
        self.submissions: list[Submission] = []

    async def wait_ready(self, timeout_s: float) -> None:
        return

    async def submit(self, submission: Submission, key: bytes = b"") -> ScriptedStream:
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.submissions.append(submission)
        size = len(submission.prompts) * submission.n
        self.streams.append(ScriptedStream(size, submission.sampling.max_tokens, self.fails, self.hangs))
        return self.streams[-1]


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    writes: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Decoded data of all events but [DONE], which must end the stream unless an error does."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data: ")]
        if lines[-1] == "[DONE]":
            assert self.body.endswith(b"data: [DONE]\n\n")
            lines.pop()
        else:
            assert "error" in json.loads(lines[-1])
        return [json.loads(line) for line in lines]


class App:
    """The real application around a scripted engine, called without a socket."""

    def __init__(self, **settings: Any) -> None:
        self.engine = ScriptedEngine()
        self.app = create_app(Config(engine="ipc:///nowhere", **settings))
        self.app.state.frontend.engine = self.engine

    def __call__(self, method: str, path: str, body: Any = None, *, hangs: bool = False, **headers: str) -> Reply:
        """`hangs`: the engine says nothing, and the client goes away while it waits."""
        return asyncio.run(self._call(method, path, body, hangs, headers))

    async def _call(self, method: str, path: str, body: Any, hangs: bool, headers: dict[str, str]) -> Reply:
        path, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "",
        }  # fmt: skip
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        requests = [{"type": "http.request", "body": data, "more_body": False}]
        gone = asyncio.Event()
        if hangs:
            self.engine.hangs = gone.set
        reply = Reply(0, {}, [])

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            elif message["body"]:
                reply.writes.append(message["body"])
            if not message.get("more_body", True):
                gone.set()

        await asyncio.wait_for(self.app(scope, receive, send), 10)
        return reply


@pytest.fixture
def app() -> App:
    return App()


CHAT = "/v1/chat/completions"
STREAMING = [
    ("POST", CHAT, {"messages": MESSAGES, "stream": True}),
    ("POST", "/v1/completions", {"prompt": "hi", "stream": True}),
    ("POST", "/generate", {"prompt": "hi", "stream": True}),
    ("POST", "/v1/completions/stream", {"prompt": "hi"}),
    ("GET", "/v1/completions/stream?prompt=hi", None),
]
WHOLE = [
    ("POST", CHAT, {"messages": MESSAGES}),
    ("POST", "/v1/completions", {"prompt": "hi"}),
    ("POST", "/generate", {"prompt": "hi"}),
    ("POST", "/v1/completions/stream", {"prompt": "hi", "stream": False}),
]


def text_of(events: Sequence[Any]) -> str:
    """The text of a stream of any route's events."""
    text = ""
    for event in events:
        for choice in event.get("choices", [event]):
            text += choice.get("text", "") or choice.get("token", "") or choice.get("delta", {}).get("content", "")
    return text


@pytest.mark.parametrize(("method", "path", "body"), STREAMING)
def test_every_streaming_route_streams(app: App, method: str, path: str, body: Any) -> None:
    reply = app(method, path, body)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["x-stream-id"] == app.engine.submissions[0].rid
    assert text_of(reply.events) == "Hello world, the end"
    assert len(reply.writes) >= len(ANSWER) - 1
    assert app.engine.streams[0].closed
    assert b"[DONE]" in reply.writes[-1]  # in the write of the last token: the body ends at once


@pytest.mark.parametrize(("method", "path", "body"), WHOLE)
def test_every_route_answers_whole(app: App, method: str, path: str, body: Any) -> None:
    reply = app(method, path, body)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    found = reply.json()
    assert found["id"] == app.engine.submissions[0].rid
    choice = found.get("choices", [found])[0]
    assert (choice.get("message", {}).get("content") or choice.get("text")) == "Hello world, the end"
    assert choice["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == len(ANSWER)
    assert app.engine.streams[0].closed


@pytest.mark.parametrize(("method", "path", "body"), STREAMING + WHOLE)
def test_what_the_engine_refuses_has_its_status(app: App, method: str, path: str, body: Any) -> None:
    app.engine.refusal = ApiError("queue_full", "512 requests are waiting.")
    reply = app(method, path, body)
    assert reply.status == 429
    assert reply.headers["retry-after"] == "1"
    assert reply.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize(("method", "path", "body"), STREAMING)
def test_a_failure_in_a_stream_is_its_last_event(app: App, method: str, path: str, body: Any) -> None:
    app.engine.fails = 2
    reply = app(method, path, body)
    assert reply.status == 200
    assert reply.events[-1]["error"]["code"] == "engine_crash"
    assert b"[DONE]" not in reply.body
    assert text_of(reply.events[:-1]) == TOKENIZER.decode(ANSWER[:2])
    assert app.engine.streams[0].closed


@pytest.mark.parametrize(("method", "path", "body"), WHOLE)
def test_a_failure_of_a_whole_answer_is_its_status(app: App, method: str, path: str, body: Any) -> None:
    app.engine.fails = 2
    assert app(method, path, body).status == 503
    assert app.engine.streams[0].closed


@pytest.mark.parametrize(("method", "path", "body"), STREAMING + WHOLE)
def test_a_client_that_leaves_closes_the_engines_stream(app: App, method: str, path: str, body: Any) -> None:
    app(method, path, body, hangs=True)
    assert [bool(stream.closed) for stream in app.engine.streams] == [True]


@pytest.mark.parametrize(("method", "path", "body"), [STREAMING[0], WHOLE[0]])
def test_a_request_ends_when_its_time_is_over(app: App, method: str, path: str, body: Any) -> None:
    app.engine.hangs = lambda: None
    reply = app(method, path, {**body, "timeout": 0.02})
    error = reply.events[-1]["error"] if body.get("stream") else reply.json()["error"]
    assert error["code"] == "request_timeout"
    assert reply.status == (200 if body.get("stream") else 408)
    assert app.engine.streams[0].closed


def test_a_stream_that_nobody_begins_to_read_is_closed() -> None:
    async def main() -> None:
        stream, work = ScriptedStream(1, 5), job(TOKENIZER)
        deadline = Deadline(60, 60)
        teller = Teller(work, ChatRenderer(work), stream.stop)
        await Chunks(stream, teller, deadline).aclose()  # type: ignore[arg-type]
        assert stream.closed

    asyncio.run(main())


def test_the_operators_limits_hold_without_the_requests() -> None:
    app = App(first_token_timeout_s=0.02)
    app.engine.hangs = lambda: None
    assert app("POST", CHAT, {"messages": MESSAGES}).status == 408


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_told_to_the_engine(app: App, stream: bool) -> None:
    reply = app("POST", CHAT, {"messages": MESSAGES, "stop": "world", "n": 2, "stream": stream})
    cut = next(i for i in range(len(ANSWER)) if "world" in TOKENIZER.decode(ANSWER[: i + 1])) + 1
    assert sorted(app.engine.streams[0].stops) == [(0, cut), (1, cut)]
    assert app.engine.streams[0].pos == cut
    choices = [event["choices"][0] for event in reply.events] if stream else reply.json()["choices"]
    assert [choice["stop_reason"] for choice in choices if choice["finish_reason"]] == ["world", "world"]


def test_generate_has_an_event_for_every_token(app: App) -> None:
    events = app("POST", "/generate", {"prompt": "hi", "stream": True}).events
    assert [event["token_id"] for event in events] == ANSWER
    assert events[0]["prefill_time_ms"] == 2.0
    assert all("step_ms" in event for event in events[1:])


def test_an_event_source_gets_numbers(app: App) -> None:
    reply = app("GET", "/v1/completions/stream?prompt=hi&max_tokens=2&temperature=0")
    rid = app.engine.submissions[0].rid
    assert reply.writes[0] == f"id: {rid}.0\n\n".encode()
    numbers = [line for line in reply.body.decode().split("\n") if line.startswith("id: ")]
    assert numbers == [f"id: {rid}.{i}" for i in range(3)]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, {}, 400, "messages"),
        (CHAT, {"messages": MESSAGES, "temperature": 2.1}, 400, "temperature"),
        (CHAT, {"messages": MESSAGES, "model": "other"}, 404, "model"),
        (CHAT, b'{"messages":[{"role":"user","content":"x"}],"top_p":NaN}', 400, "top_p"),
        (CHAT, b"\xff", 400, None),
        (CHAT, b"", 400, None),
        ("/v1/completions", {"prompt": [600]}, 400, "prompt"),
        ("/generate", {"prompt": "hi", "n": 2}, 400, "n"),
        ("/v1/completions/stream", {"prompt": ["a", "b"]}, 400, "prompt"),
        ("/tokenize", {}, 400, "prompt"),
        ("/detokenize", {"tokens": [512]}, 400, "tokens"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
    ],
)
def test_bad_requests(app: App, path: str, body: Any, status: int, param: str | None) -> None:
    reply = app("POST", path, body)
    assert reply.status == status
    assert reply.json()["error"]["param"] == param
    assert not app.engine.submissions


def test_models(app: App) -> None:
    [model] = app("GET", "/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 256)
    assert app("GET", "/v1/models/tiny").json() == model
    assert app("GET", "/v1/models/some/other").status == 404


def test_tokenize_and_back(app: App) -> None:
    found = app("POST", "/tokenize", {"prompt": "Hello", "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 256
    assert app("POST", "/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "<|bos|>Hello"}
    assert app("POST", "/detokenize", {"tokens": []}).json() == {"prompt": ""}
