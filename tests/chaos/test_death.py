"""Deaths and endings in the middle of a roll: what is left serves on, and nothing is left behind."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.chaos.line import Line
from tests.e2e.server import Server, alive, descendants, until

FRONTENDS = 2
START_S = 90.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The first test leaves it well, the second ends it."""
    with Server("--api-workers", str(FRONTENDS)) as running:
        yield running


def frontends(server: Server) -> list[int]:
    return [pid for pid, command in descendants(server.process.pid).items() if "-m api_server" in command]


def well(server: Server) -> bool:
    """All frontends run and know the engine."""
    running, log = frontends(server), server.log()
    return len(running) == FRONTENDS and all(f"api_server[{pid}] engine ready" in log for pid in running)


def count(server: Server, *told: str) -> int:
    log = server.log()
    return sum(log.count(each) for each in told)


def test_frontends_that_are_killed_in_a_roll_are_replaced(server: Server) -> None:
    engine, chance = server.pid_of("engine_core"), random.Random()
    for moment in ("rolling: ", "has taken over", "rolled: all"):
        before, over = count(server, moment), count(server, "rolled: all", "the roll is given up")
        server.process.send_signal(signal.SIGHUP)
        until(lambda moment=moment, before=before: count(server, moment) > before, START_S)  # type: ignore[misc]
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(chance.choice(frontends(server)), signal.SIGKILL)
        until(lambda over=over: count(server, "rolled: all", "the roll is given up") > over, START_S)  # type: ignore[misc]
        until(lambda: well(server), START_S)
    for number in range(10):
        assert server.post("/v1/completions", {"prompt": f"{number}", "max_tokens": 2}).status == 200
    assert (server.pid_of("engine_core"), server.engine()["epoch"]) == (engine, 1)


async def end_in_a_roll(server: Server) -> set[int]:
    """Returns all processes that there were."""
    pids, before = set(descendants(server.process.pid)), count(server, "has taken over")
    body = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True}

    async def stream() -> None:
        with Line(server.port) as line:
            reply = await line.post("/v1/completions", body)
            assert reply.status == 200
            assert reply.events()[-1]["choices"][0]["finish_reason"] == "length"

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(stream())
        async with asyncio.timeout(START_S):
            while server.engine()["running"] < 8:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGHUP)
            while count(server, "has taken over") == before:
                await asyncio.sleep(0.01)
        pids |= set(descendants(server.process.pid))
        server.process.terminate()
    return pids


def test_a_signal_in_a_roll_lets_all_streams_finish(server: Server) -> None:
    pids = asyncio.run(end_in_a_roll(server))
    assert server.process.wait(120) == 0
    until(lambda: not any(alive(pid) for pid in pids))
