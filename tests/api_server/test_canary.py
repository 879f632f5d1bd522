import asyncio
from types import TracebackType
from typing import Any, Self

import pytest

from api_server.canary import Canary
from api_server.errors import ApiError
from api_server.submission import Submission


class Engine:
    """Refuses, or gives a stream that answers at once."""

    def __init__(self, refusal: str = "", *, ready: bool = True) -> None:
        self.refusal = refusal
        self.ready = ready
        self.submissions: list[Submission] = []

    async def submit(self, submission: Submission) -> Self:
        self.submissions.append(submission)
        if self.refusal:
            raise ApiError(self.refusal, "no")
        return self

    async def take(self) -> list[Any]:
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def failure(engine: Engine) -> str:
    return asyncio.run(Canary(engine).failure())  # type: ignore[arg-type]


def test_it_goes_before_all_others_and_is_as_small_as_can_be() -> None:
    engine = Engine()
    assert failure(engine) == ""
    [submission] = engine.submissions
    assert submission.priority == -(2**31)
    assert (submission.n, len(submission.prompts), submission.sampling.max_tokens) == (1, 1, 1)


@pytest.mark.parametrize(
    ("refusal", "ready", "expected"),
    [
        ("queue_full", True, ""),
        ("queue_full", False, "queue_full"),
        ("engine_crash", True, "engine_crash"),
        ("engine_restarting", True, "engine_restarting"),
    ],
)
def test_a_full_queue_is_health_while_the_engine_moves(refusal: str, ready: bool, expected: str) -> None:
    assert failure(Engine(refusal, ready=ready)) == expected
