"""The client against a real engine core over a real socket; only the device is made up."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api_server.engine_client import EngineClient
from api_server.errors import ApiError
from api_server.stream import Stream
from api_server.submission import Submission
from protocol.messages import Delta, FinishReason
from protocol.sampling import SamplingParams
from tests.fakes import DEADLINE_S, MadeUpDevice, MadeUpEngine

FIVE = SamplingParams(max_tokens=5, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)


def asked(
    sampling: SamplingParams = FIVE, *, rid: str = "r1", prompts: list[list[int]] | None = None, n: int = 1
) -> Submission:
    return Submission(rid, [[1, 2, 3]] if prompts is None else prompts, n, sampling, seed=0)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/e.sock"


@asynccontextmanager
async def connected(endpoint: str) -> AsyncIterator[EngineClient]:
    client = EngineClient(endpoint)
    await client.start()
    try:
        await client.wait_ready(DEADLINE_S)
        yield client
    finally:
        client.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def read(stream: Stream) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {index: [] for index in range(stream.size)}
    while not stream.finished:
        for index, delta in await stream.take():
            assert delta.pos == len(out[index])
            out[index] += delta.tokens
    return out


async def read_on(stream: Stream) -> None:
    while True:
        await stream.take()


async def test_a_request_and_its_tokens(endpoint: str) -> None:
    with MadeUpEngine(endpoint):
        async with connected(endpoint) as client:
            with await client.submit(asked()) as stream:
                assert await read(stream) == {0: [1, 2, 3, 1, 2]}
            assert client.ready
            assert client.epoch == 1


async def test_several_prompts_and_choices(endpoint: str) -> None:
    with MadeUpEngine(endpoint):
        async with connected(endpoint) as client:
            with await client.submit(asked(prompts=[[1], [2]], n=2)) as stream:
                assert await read(stream) == {0: [1] * 5, 1: [1] * 5, 2: [2] * 5, 3: [2] * 5}


async def test_what_is_not_taken_is_merged(endpoint: str) -> None:
    with MadeUpEngine(endpoint) as engine:
        async with connected(endpoint) as client:
            with await client.submit(asked()) as stream:
                await until(lambda: engine.device.steps == 5 and not stream._unfinished)
                [(index, delta)] = await stream.take()
                assert (index, delta.pos, delta.tokens) == (0, 0, [1, 2, 3, 1, 2])
                assert delta.finish is FinishReason.LENGTH
                assert delta.first is not None
            await until(lambda: engine.scheduler.idle)


async def test_refusals_keep_their_code_and_field(endpoint: str) -> None:
    with MadeUpEngine(endpoint):
        async with connected(endpoint) as client:
            with pytest.raises(ApiError) as caught:
                await client.submit(asked(prompts=[[1, 5000]]))
            assert (caught.value.status, caught.value.param) == (400, "prompt")


async def test_a_full_queue(endpoint: str) -> None:
    device = MadeUpDevice()
    with MadeUpEngine(endpoint, device=device, max_num_seqs=1, max_queued_requests=2) as engine:
        async with connected(endpoint) as client:
            device.step_s = 0.01
            long = SamplingParams(max_tokens=1000, ignore_eos=True)
            streams = [await client.submit(asked(rid="first", sampling=long))]
            await until(lambda: len(engine.scheduler.running) == 1)
            streams += [await client.submit(asked(rid=str(i), sampling=long)) for i in range(2)]
            with pytest.raises(ApiError) as caught:
                await client.submit(asked(rid="too many", sampling=long))
            assert caught.value.code == "queue_full"
            assert caught.value.headers == {"Retry-After": "1"}
            for stream in streams:
                stream.close()
            await until(lambda: engine.scheduler.idle)


async def test_leaving_early_frees_the_blocks(endpoint: str) -> None:
    device = MadeUpDevice(step_s=0.005)
    with MadeUpEngine(endpoint, device=device) as engine:
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=ENDLESS)) as stream:
                await stream.take()
                assert engine.scheduler.pool.used
            await until(lambda: engine.scheduler.pool.used == 0)
            assert device.steps < 100


async def test_who_leaves_makes_room_for_the_next_at_once(endpoint: str) -> None:
    with MadeUpEngine(endpoint):
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=ENDLESS)):
                client.load.full = True
            assert not client.load.full


async def test_being_cancelled_in_submit_aborts(endpoint: str) -> None:
    device = MadeUpDevice()
    with MadeUpEngine(endpoint, device=device) as engine:
        async with connected(endpoint) as client:
            with await client.submit(asked(rid="busy")):
                device.gate.clear()
                task = asyncio.create_task(client.submit(asked(rid="cancelled")))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                device.gate.set()
            await until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)


async def test_a_stop_is_a_success(endpoint: str) -> None:
    with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.002)) as engine:
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=ENDLESS)) as stream:
                await stream.take()
                stream.stop(0, 1)
                assert stream.finished
            await until(lambda: engine.scheduler.idle)
            await until(lambda: client.told.metrics.finished["stop"] == 1)


async def test_engine_death_ends_streams_and_the_next_engine_serves(endpoint: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.002)) as engine:
            client = EngineClient(endpoint)
            await client.start()
            stream = await client.submit(asked(sampling=ENDLESS))
            await stream.take()
            await asyncio.to_thread(engine.kill)
        with pytest.raises(ApiError) as caught:
            await read_on(stream)
        assert caught.value.code == "engine_restarting"
        stream.close()
        assert client.state == "down"
        with MadeUpEngine(endpoint, epoch=2):
            await client.wait_ready(DEADLINE_S)
            assert client.epoch == 2
            with await client.submit(asked(rid="r2")) as again:
                assert await read(again) == {0: [1, 2, 3, 1, 2]}
            client.close()


async def test_a_draining_engine_says_so_and_finishes(endpoint: str) -> None:
    with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.01)) as engine:
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=SamplingParams(max_tokens=100, ignore_eos=True))) as stream:
                engine.core.drain(DEADLINE_S)
                await until(lambda: client.state == "draining")
                with pytest.raises(ApiError) as caught:
                    await client.submit(asked(rid="late"))
                assert caught.value.code == "draining"
                assert len((await read(stream))[0]) == 100


async def test_a_drain_that_takes_too_long_ends_streams_with_a_word(endpoint: str) -> None:
    with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.01)) as engine:
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=ENDLESS)) as stream:
                engine.core.drain(0.1)
                with pytest.raises(ApiError) as caught:
                    await read_on(stream)
                assert caught.value.code == "draining"


async def test_no_engine_is_a_clear_refusal(endpoint: str) -> None:
    client = EngineClient(endpoint)
    await client.start()
    with pytest.raises(ApiError) as caught:
        await client.wait_ready(0.05)
    assert caught.value.code == "engine_loading"
    assert client.state == "connecting"
    client.close()


async def test_a_stuck_step_shows_in_the_state(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_server.engine_client.FRESH_S", 0.1)
    monkeypatch.setattr("engine_core.core.LEASE_S", 0.1)
    device = MadeUpDevice()
    with MadeUpEngine(endpoint, device=device):
        async with connected(endpoint) as client:
            device.gate.clear()
            with await client.submit(asked()):
                await until(lambda: client.state == "stale")
                device.gate.set()
                await until(lambda: client.state == "ready")


def test_positions_that_overlap_are_cut_and_gaps_end_the_request() -> None:
    async def scenario() -> None:
        stream = Stream(EngineClient("ipc://unused"), "r", 10, 1)
        stream.put(Delta(10, 0, [1, 2]))
        stream.put(Delta(10, 1, [2, 3]))
        assert [delta.tokens for _, delta in await stream.take()] == [[1, 2, 3]]
        stream.put(Delta(10, 5, [9]))
        with pytest.raises(ApiError, match="2 tokens were lost"):
            await stream.take()

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------- cancel


async def test_a_request_of_another_frontend_is_cancelled_with_its_key_alone(endpoint: str) -> None:
    with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.002)) as engine:
        async with connected(endpoint) as reader, connected(endpoint) as other:
            with await reader.submit(asked(sampling=ENDLESS, n=2), b"key") as stream:
                await stream.take()
                assert not await other.cancel("r1", b"another key")
                assert not await other.cancel("r2", b"key")
                assert await other.cancel("r1", b"key")
                with pytest.raises(ApiError) as caught:
                    await read_on(stream)
                assert (caught.value.code, caught.value.status) == ("request_cancelled", 499)
                assert not await other.cancel("r1", b"key")
            await until(lambda: engine.scheduler.idle and engine.scheduler.pool.used == 0)


async def test_what_waits_to_be_accepted_can_be_cancelled(endpoint: str) -> None:
    device = MadeUpDevice()
    with MadeUpEngine(endpoint, device=device):
        async with connected(endpoint) as client:
            with await client.submit(asked(rid="busy", sampling=ENDLESS)):
                device.gate.clear()
                submitting = asyncio.create_task(client.submit(asked(rid="r2", sampling=ENDLESS)))
                await asyncio.sleep(0)
                cancelling = asyncio.create_task(client.cancel("r2", b""))
                await asyncio.sleep(0)
                device.gate.set()
                assert await cancelling
                with pytest.raises(ApiError, match="cancelled"), await submitting as stream:
                    await read_on(stream)


async def test_several_that_ask_for_one_id_get_each_its_own_answer(endpoint: str) -> None:
    with MadeUpEngine(endpoint, device=MadeUpDevice(step_s=0.002)):
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=ENDLESS), b"key"):
                keys = [b"", b"key", b"key", b"other"]
                assert await asyncio.gather(*(client.cancel("r1", key) for key in keys)) == [False, True, False, False]
            assert client._cancels == {}


async def test_an_engine_that_gives_no_answer_is_not_waited_for(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api_server.engine_client.CANCEL_WAIT_S", 0.1)
    device = MadeUpDevice()
    device.gate.clear()  # before the request is there: its first step is what holds up the engine
    with MadeUpEngine(endpoint, device=device):
        async with connected(endpoint) as client:
            with await client.submit(asked(sampling=ENDLESS)) as stream:
                with pytest.raises(ApiError) as caught:
                    await client.cancel("r1", b"")
                assert (caught.value.code, caught.value.status) == ("engine_restarting", 503)
                later = asyncio.create_task(client.cancel("unknown", b""))
                device.gate.set()
                with pytest.raises(ApiError, match="cancelled"):  # it counted all the same
                    await read_on(stream)
                assert not await later
                await until(lambda: client._cancels == {})


async def test_without_an_engine_there_is_nothing_to_cancel(endpoint: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with MadeUpEngine(endpoint, device=MadeUpDevice()) as engine:
            async with connected(endpoint) as client:
                engine.device.gate.clear()
                with await client.submit(asked(sampling=ENDLESS)):
                    cancelling = asyncio.create_task(client.cancel("r1", b""))
                    await asyncio.sleep(0)
                    await asyncio.to_thread(engine.kill)
                with pytest.raises(ApiError) as caught:
                    await cancelling
                assert caught.value.code == "engine_restarting"
                with pytest.raises(ApiError) as caught:
                    await client.cancel("r1", b"")
                assert caught.value.status == 503
                with MadeUpEngine(endpoint, epoch=2):
                    await client.wait_ready(DEADLINE_S)
                    assert not await client.cancel("r1", b"")  # its answer is not taken for that of the dead engine
