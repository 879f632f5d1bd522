import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from api_server.deadline import Deadline
from api_server.errors import ApiError


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def soon() -> int:
    await asyncio.sleep(0)
    return 5


def test_work_in_time_is_passed_through() -> None:
    async def main() -> None:
        deadline = Deadline(60, 60)
        assert await deadline.wait(soon) == 5
        deadline.close()

    run(main())


@pytest.mark.parametrize(("first_s", "whole_s", "named"), [(0.01, 60, "first token"), (60, 0.01, "first token")])
def test_the_first_token_must_come(first_s: float, whole_s: float, named: str) -> None:
    async def main() -> None:
        deadline = Deadline(first_s, whole_s)
        with pytest.raises(ApiError) as caught:
            await deadline.wait(forever)
        assert caught.value.code == "request_timeout"
        assert named in caught.value.message
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with pytest.raises(ApiError):
            await deadline.wait(soon)

    run(main())


def test_after_the_first_token_the_whole_answer_counts() -> None:
    async def main() -> None:
        deadline = Deadline(0.01, 0.05)
        deadline.first_token()
        deadline.first_token()
        with pytest.raises(ApiError, match="The answer took longer"):
            await deadline.wait(forever)

    run(main())


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def main() -> None:
        deadline = Deadline(60, 60)
        task = asyncio.create_task(deadline.wait(forever))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadline.close()

    run(main())


def test_both_at_once_is_a_cancellation() -> None:
    async def main() -> None:
        deadline = Deadline(60, 60)
        task = asyncio.create_task(deadline.wait(forever))
        await asyncio.sleep(0)
        deadline._expire("now")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        deadline.close()

    run(main())


def test_a_deadline_that_passes_between_waits_ends_the_next() -> None:
    async def main() -> None:
        deadline = Deadline(60, 60)
        deadline._expire("now")
        started = False

        async def work() -> None:
            nonlocal started
            started = True

        with pytest.raises(ApiError):
            await deadline.wait(work)
        assert not started
        deadline.close()

    run(main())
