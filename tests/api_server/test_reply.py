"""Who owns the engine's stream between its acceptance and its first chunk, and what chunks that came together count."""

import asyncio
import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import pytest
from starlette.requests import Request

from api_server.app import create_app
from api_server.config import Config
from api_server.deadline import Deadline
from api_server.errors import ApiError
from api_server.job import Job
from api_server.render.chat import ChatRenderer
from api_server.reply import Chunks, reply
from api_server.submission import Submission
from api_server.teller import Teller
from protocol.messages import Delta, FinishReason
from tests.api_server.vocabularies import byte_level, deltas, job
from tests.fakes import made_up_scores

TOKENIZER = byte_level()
TOKENS = TOKENIZER.encode("Hello world", add_special_tokens=False).ids


@dataclass
class Held:
    """Gives `news` in one take, and then nothing."""

    news: list[tuple[int, Delta]] = field(default_factory=list)
    closed: bool = False

    async def take(self) -> list[tuple[int, Delta]]:
        if not self.news:
            await asyncio.get_running_loop().create_future()
        news, self.news = self.news, []
        return news

    def close(self) -> None:
        self.closed = True

    leave = close

    def stop(self, index: int, pos: int) -> None:
        raise AssertionError("there is no stop string")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Engine:
    def __init__(self) -> None:
        self.stream = Held()
        self.go = asyncio.Event()

    async def submit(self, submission: Submission, key: bytes) -> Held:
        await self.go.wait()
        return self.stream


def request(engine: Engine) -> Request:
    app = create_app(Config(engine="ipc:///nowhere"))
    app.state.frontend.engine = engine

    async def silence() -> Any:
        await asyncio.get_running_loop().create_future()

    return Request({"type": "http", "app": app, "headers": [], "state": {"key_digest": b""}}, silence)


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_at_any_moment_around_the_acceptance_closes_the_stream(stream: bool, turns: int) -> None:
    engine, work = Engine(), job(TOKENIZER, stream=stream)
    answering = asyncio.create_task(reply(request(engine), work, ChatRenderer(work)))
    while not engine.go._waiters:
        await asyncio.sleep(0)
    engine.go.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    answering.cancel()
    try:
        response: Any = await answering
    except asyncio.CancelledError:
        assert engine.stream.closed or turns == 0  # cancelled before the engine's answer was looked at
    else:
        assert stream
        assert not engine.stream.closed
        await response._chunks.aclose()
        assert engine.stream.closed


async def chunks_of(work: Job, news: list[tuple[int, Delta]]) -> list[Any]:
    """All events of a stream that the engine gave in one piece."""
    stream: Any = Held(news)
    chunks = Chunks(stream, Teller(work, ChatRenderer(work), stream.stop), Deadline(60, 60))
    data = b"".join([chunk async for chunk in chunks])
    events = [event.removeprefix("data: ") for event in data.decode().split("\n\n")]
    return [json.loads(event) for event in events if event not in ("", "[DONE]")]


@pytest.mark.anyio
async def test_chunks_that_came_together_count_up_and_openings_count_nothing_of_their_own() -> None:
    work = job(TOKENIZER, n=2, include_usage=True, continuous_usage=True)
    news = [(index, part) for index in (0, 1) for part in deltas(TOKENS, (), FinishReason.LENGTH)]
    events = await chunks_of(work, news)
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 2, 2, 4, 4]
    assert all(event["usage"]["total_tokens"] == event["usage"]["completion_tokens"] + 1 for event in events)


@pytest.mark.anyio
async def test_what_is_told_of_the_prompt_is_no_first_token() -> None:
    work = job(TOKENIZER, [[5, 6]], prompt_logprobs=0)
    (portion,) = made_up_scores([5, 6], range(1, 2), work.submission.sampling)
    stream: Any = Held([(0, Delta(0, 0, [], prompt=portion))])
    chunks = Chunks(stream, Teller(work, ChatRenderer(work), stream.stop), Deadline(0.05, 60))
    assert b'"prompt_logprobs":[null,{"6":' in await anext(chunks)
    with pytest.raises(ApiError, match="first token"):
        await anext(chunks)


@pytest.mark.anyio
async def test_a_first_token_behind_the_prompt_s_last_portion_is_one() -> None:
    work = job(TOKENIZER, [[5, 6]], prompt_logprobs=0)
    (portion,) = made_up_scores([5, 6], range(1, 2), work.submission.sampling)
    stream: Any = Held([(0, Delta(0, 0, [], prompt=portion)), (0, Delta(0, 0, [7]))])
    chunks = Chunks(stream, Teller(work, ChatRenderer(work), stream.stop), Deadline(0.05, 0.2))
    await anext(chunks)
    with pytest.raises(ApiError, match="answer took longer"):
        await anext(chunks)
