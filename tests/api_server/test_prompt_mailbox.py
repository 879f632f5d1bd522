"""Log probabilities on their way through a mailbox: a little at a time, and those of prompts before the tokens."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from api_server.engine_client import EngineClient
from api_server.errors import ApiError
from api_server.stream import TAKEN_TOKENS, Stream
from api_server.submission import Submission
from protocol.messages import Delta, FinishReason, FirstToken, TokenLogprobs
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import SamplingParams
from tests.fakes import DEADLINE_S, MadeUpEngine, made_up_scores

pytestmark = pytest.mark.anyio

ASKED = SamplingParams(max_tokens=3, ignore_eos=True, prompt_logprobs=2)


def portion(start: int, stop: int) -> PromptLogprobs:
    """Of positions `start` … `stop` of a prompt of 30 tokens, ten at most."""
    (made,) = made_up_scores(range(100, 130), range(start, stop), ASKED)
    return made


def positions(made: PromptLogprobs | None) -> list[int]:
    """Read from the values."""
    assert made is not None
    return [entry.rank for entry in made.entries(2)]


def mailbox(*prompts: int, n: int = 1) -> Stream:
    """Handles begin at 10."""
    return Stream(EngineClient("ipc://unused"), "r", 10, len(prompts) * n, prompts)


async def taken(stream: Stream) -> list[tuple[int, list[int]]]:
    """One take: prompt positions or tokens, by sequence."""
    return [
        (index, delta.tokens if delta.prompt is None else positions(delta.prompt))
        for index, delta in await asyncio.wait_for(stream.take(), DEADLINE_S)
    ]


async def test_of_tokens_with_log_probabilities_a_few_are_taken_at_a_time() -> None:
    stream = Stream(EngineClient("ipc://unused"), "r", 10, 2)
    tokens = list(range(2 * TAKEN_TOKENS + 7))
    entries = [TokenLogprobs(-float(token), [], []) for token in tokens]
    for handle in (10, 11):
        delta = Delta(handle, 0, list(tokens), FinishReason.STOP, 5, FirstToken(0.0, 0.0), list(entries))
        stream.put(delta)
    found: dict[int, list[Delta]] = {0: [], 1: []}
    turns = 0
    while not stream.finished:
        taken = await stream.take()
        turns += 1
        assert sum(len(delta.tokens) for _, delta in taken) <= TAKEN_TOKENS
        for index, delta in taken:
            found[index].append(delta)
    assert turns == 5
    for deltas in found.values():
        assert [token for delta in deltas for token in delta.tokens] == tokens
        assert [entry for delta in deltas for entry in delta.logprobs or ()] == entries
        assert all(delta.tokens[0] == delta.pos for delta in deltas)
        assert [delta.first is not None for delta in deltas] == [True, *[False] * (len(deltas) - 1)]
        assert [delta.finish for delta in deltas] == [*[None] * (len(deltas) - 1), FinishReason.STOP]
        assert [delta.stop_token for delta in deltas] == [*[None] * (len(deltas) - 1), 5]


async def test_others_have_their_turn_between_two_takes_of_log_probabilities() -> None:
    stream = Stream(EngineClient("ipc://unused"), "r", 10, 1)
    tokens = list(range(3 * TAKEN_TOKENS))
    stream.put(Delta(10, 0, tokens, FinishReason.STOP, logprobs=[TokenLogprobs(-0.5, [], []) for _ in tokens]))
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    turn()
    while not stream.finished:
        await stream.take()
    assert turns >= 3


async def test_portions_are_taken_one_by_one_and_before_the_tokens() -> None:
    stream = mailbox(15)
    stream.put(Delta(10, 0, [], prompt=portion(1, 9)))
    stream.put(Delta(10, 0, [], prompt=portion(9, 15)))
    stream.put(Delta(10, 0, [7]))
    stream.put(Delta(10, 1, [8], FinishReason.LENGTH))
    assert [await taken(stream) for _ in range(2)] == [
        [(0, list(range(1, 9)))],
        [(0, list(range(9, 15))), (0, [7, 8])],
    ]
    assert stream.finished


async def test_what_came_before_a_replay_is_cut_off() -> None:
    stream = mailbox(15)
    for start, stop in ((1, 8), (1, 6), (5, 12), (3, 9), (12, 15)):
        stream.put(Delta(10, 0, [], prompt=portion(start, stop)))
    found = [place for _ in range(3) for _, places in await taken(stream) for place in places]
    assert found == list(range(1, 15))


@pytest.mark.parametrize("lost", [Delta(10, 0, [], prompt=portion(6, 9)), Delta(10, 0, [7])], ids=["gap", "token"])
async def test_a_gap_ends_the_request_behind_what_there_is(lost: Delta) -> None:
    stream = mailbox(15)
    stream.put(Delta(10, 0, [], prompt=portion(1, 4)))
    stream.put(lost)
    assert await taken(stream) == [(0, [1, 2, 3])]
    with pytest.raises(ApiError, match="log probabilities of the prompt were lost"):
        await stream.take()


async def test_siblings_wait_for_their_own_prompt_alone() -> None:
    stream = mailbox(5, 1, 4, n=2)
    for handle in (11, 12, 13, 15):
        stream.put(Delta(handle, 0, [handle]))
    assert await taken(stream) == [(2, [12]), (3, [13])]
    stream.put(Delta(14, 0, [], prompt=portion(1, 4)))
    assert await taken(stream) == [(4, [1, 2, 3]), (5, [15])]
    stream.put(Delta(10, 0, [], prompt=portion(1, 3)))
    assert await taken(stream) == [(0, [1, 2])]
    stream.put(Delta(10, 0, [], prompt=portion(3, 5)))
    assert await taken(stream) == [(0, [3, 4]), (1, [11])]


async def test_a_sibling_s_token_does_not_overtake_its_prompt_by_the_short_way() -> None:
    stream, told = mailbox(21, n=2), list[int]()
    stream.put(Delta(10, 0, [], prompt=portion(1, 11)))
    assert await taken(stream) == [(0, list(range(1, 11)))]

    def tell(index: int, delta: Delta) -> bool:
        told.extend(delta.tokens)
        return True

    stream.express(tell)
    reading = asyncio.create_task(taken(stream))
    await asyncio.sleep(0.01)  # it waits by then, and if it does not, nothing is shown
    stream.put(Delta(11, 0, [7]))
    stream.put(Delta(10, 0, [], prompt=portion(11, 21)))
    assert await reading == [(0, list(range(11, 21))), (1, [7])]
    assert told == []


async def test_others_have_their_turn_between_portions() -> None:
    stream = mailbox(25)
    for start in (1, 9, 17):
        stream.put(Delta(10, 0, [], prompt=portion(start, start + 8)))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for _ in range(3):
        before = turns
        await stream.take()
        assert turns > before
    counting.cancel()


async def test_a_request_through_an_engine(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/e.sock"
    prompts: Sequence[list[int]] = ([*range(100, 141)], [5], [*range(200, 217)])
    with MadeUpEngine(endpoint):
        client = EngineClient(endpoint)
        await client.start()
        await client.wait_ready(DEADLINE_S)
        told: dict[int, list[int]] = {index: [] for index in range(6)}
        tokens: dict[int, list[int]] = {index: [] for index in range(6)}
        with await client.submit(Submission("r", list(prompts), 2, ASKED, 1)) as stream:
            while not stream.finished:
                for index, delta in await asyncio.wait_for(stream.take(), DEADLINE_S):
                    tokens[index] += delta.tokens
                    if delta.prompt is not None:
                        assert not tokens[index]
                        assert not tokens[index + 1]
                        told[index] += positions(delta.prompt)
                        assert all(len(entry.top_ids) == 2 for entry in delta.prompt.entries(2))
        client.close()
    assert told == {0: list(range(1, 41)), 1: [], 2: [], 3: [], 4: list(range(1, 17)), 5: []}
    assert tokens == {index: (prompts[index // 2] * 3)[:3] for index in range(6)}
