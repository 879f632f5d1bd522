"""Frontends that are replaced while they work: nobody who is served may notice."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.chaos.line import Line
from tests.e2e.server import Server, alive, descendants, until

ROLLS = 20
STREAMS = 64
TOKENS = 24
ROLL_S = 120.0  # what one roll may take on a busy machine
FRONTENDS = 2


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("--api-workers", str(FRONTENDS)) as running:
        yield running


def frontends(server: Server) -> set[int]:
    return {pid for pid, command in descendants(server.process.pid).items() if "-m api_server" in command}


def rolled(server: Server, times: int) -> bool:
    log = server.log()
    assert "given up" not in log, log
    return log.count("rolled: all frontends are new") >= times


class Clients:
    """Until they are told to stop; each failure of one of them is the test's."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stopping = False
        self.streams = 0
        self.probes = 0
        self.at_rest = [Line(port) for _ in range(8)]

    async def stream(self, number: int, *, keep: bool) -> None:
        """One stream after the other, on one connection or on a new one each."""
        body = {"prompt": f"Once upon a time {number}", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        with Line(self.port) as line:
            while not self.stopping:
                reply = await line.post("/v1/completions", {**body, "return_token_ids": True})
                assert reply.status == 200, reply.body
                choices = [choice for event in reply.events() for choice in event["choices"]]
                assert sum(len(choice["token_ids"]) for choice in choices) == TOKENS
                assert choices[-1]["finish_reason"] == "length"
                self.streams += 1
                if not keep:
                    line.close()

    async def probe(self, *, keep: bool) -> None:
        with Line(self.port) as line:
            while not self.stopping:
                reply = await line.get("/readyz" if self.probes % 2 else "/v1/models")
                # Stale is an engine that this machine has not let run for 3 s: that is no roll's doing.
                assert reply.status == 200 or b'"engine stale"' in reply.body, reply.body
                self.probes += 1
                if not keep:
                    line.close()
                await asyncio.sleep(0.05)

    async def wake(self) -> None:
        """Those that rest from one roll to the next still have the connection they began with."""
        for line in self.at_rest:
            assert (await line.get("/v1/models")).status == 200
            assert line.connects == 1


async def roll_under_load(server: Server) -> Clients:
    clients = Clients(server.port)
    with contextlib.ExitStack() as closing:
        for line in clients.at_rest:
            closing.enter_context(line)
        await roll_under(clients, server)
    return clients


async def roll_under(clients: Clients, server: Server) -> None:
    seen = frontends(server)
    async with asyncio.TaskGroup() as group:
        for number in range(STREAMS):
            group.create_task(clients.stream(number, keep=number % 2 == 0))
        for number in range(8):
            group.create_task(clients.probe(keep=number % 2 == 0))
        await clients.wake()
        for number in range(1, ROLLS + 1):
            os.kill(server.process.pid, signal.SIGHUP)
            async with asyncio.timeout(ROLL_S):
                while not rolled(server, number):
                    await asyncio.sleep(0.05)
            serving = frontends(server)
            assert len(serving) == FRONTENDS
            assert not serving & seen
            seen |= serving
            await clients.wake()
        clients.stopping = True


def test_twenty_rolls_under_sixty_four_streams(server: Server) -> None:
    engine, epoch = server.pid_of("engine_core"), server.engine()["epoch"]
    clients = asyncio.run(roll_under_load(server))
    assert clients.streams >= STREAMS
    assert clients.probes >= 2 * ROLLS
    assert (server.pid_of("engine_core"), server.engine()["epoch"]) == (engine, epoch)
    pids = descendants(server.process.pid)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    until(lambda: not any(alive(pid) for pid in pids))
