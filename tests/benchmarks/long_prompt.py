"""How much a long prompt delays the tokens of other streams: `python -m tests.benchmarks.long_prompt`.

A real frontend and a real engine core on a made-up device, each in its own process: the device takes a fixed time for
every step, however many tokens are in it, so whatever is late is late because of the two processes. Some streams run
all the time. Then come rounds, in turn with a long prompt and without one, and of each round the longest gap between
two tokens of a stream counts. A prompt's added delay is that gap less the median one of the rounds without a prompt.

The same is told of the engine's own steps, which is the part of the delay that began there, and of the processor time
that went into them, which other load on the machine does not change.

Two shared cores, 20 rounds of 1 MiB (8 where marked *), added to a token, p50 and max in ms, and in brackets while
prompts were lists on the wire: text 4.0*, 14.4* (13.3, 20.1); the same text again 9.2*, 12.6* (14.7, 18.1); token ids
8.9*, 16.2* (11.1, 17.5); chat 4.2, 16.7 (9.6, 13.5); 20,000 messages 9.4*, 11.9* (12.1, 19.6); responses 3.6, 10.7
(18.7, 36.0).
"""

import argparse
import asyncio
import gc
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import uvloop

from engine_core.batch import Batch
from engine_core.model.card import build_card, load_tokenizer
from engine_core.model.loader import load_config
from engine_core.model.source import ModelSource
from engine_core.scheduler import Sampled
from engine_core.tiny import MODEL_PATH
from tests.benchmarks.processes import process
from tests.e2e.server import free_port
from tests.fakes import MadeUpDevice, MadeUpEngine

CONTEXT = 1 << 20  # tokens: room for what is accepted
SHORT_CONTEXT = 2048  # where a long prompt is refused once it is tokenised
BLOCK = 16
START_S = 60.0
QUIET_S = 0.1  # after an answer, what still belongs to its round
WORDS = ("the", "fox", "said", "that", "every", "morning", "two", "small", "birds", "sang", "over", "a", "river")


# ---------------------------------------------------------------------------------------------------- the engine


class TimedDevice(MadeUpDevice):
    """Notes when each step was done, and how much its thread had computed by then."""

    def __init__(self, step_s: float, tokens: Sequence[int]) -> None:
        super().__init__(lambda request: tokens[request.out_len % len(tokens)], step_s)
        self.done: list[tuple[float, float]] = []

    def collect(self, pending: Batch) -> list[Sampled]:
        sampled = super().collect(pending)
        self.done.append((time.monotonic(), time.thread_time()))
        return sampled


def run_engine(endpoint: str, context: int, step_s: float, times: Path) -> None:
    """Until SIGTERM; then writes when its steps were done."""
    source = ModelSource(str(MODEL_PATH))
    architecture = load_config(source)
    files = load_tokenizer(source)
    card = build_card(
        source,
        architecture,
        files,
        name="made-up",
        created=0,
        vocab_size=architecture.vocab_size,
        max_model_len=context,
    )
    device = TimedDevice(step_s, range(300, 400))
    gc.collect()
    gc.freeze()  # as the engine process does
    with MadeUpEngine(endpoint, device=device, card=card, num_blocks=context // BLOCK * 2 + 1):
        signal.sigwait({signal.SIGTERM})
    times.write_text(json.dumps(device.done))


# ---------------------------------------------------------------------------------------------------- the client


@dataclass
class Stream:
    """A background stream, and when its events came."""

    port: int
    came_s: list[float] = field(default_factory=list)

    async def run(self) -> None:
        body = {"prompt": "Once upon a time", "max_tokens": 60_000, "ignore_eos": True, "stream": True}
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(post("/v1/completions", body))
            while data := await reader.read(1 << 16):
                if b"data: {" in data:
                    self.came_s.append(time.monotonic())
            writer.close()

    def longest_gap_s(self, begin_s: float, end_s: float) -> float:
        times = [begin_s, *(time for time in self.came_s if begin_s <= time <= end_s), end_s]
        return max(later - earlier for earlier, later in pairwise(times))


def post(path: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


async def answer(port: int, request: bytes) -> int:
    """The status; all of the answer has been read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(request)
    status = int((await reader.readline()).split()[1])
    while await reader.read(1 << 20):
        pass
    writer.close()
    return status


def prompts(size: int) -> dict[str, Callable[[int], bytes]]:
    """By kind, what makes the request of a round: `size` characters, or token ids that are about as long in JSON. No
    two rounds have a prefix in common, but for the kind that says so."""
    draw = random.Random(0)
    text = " ".join(draw.choice(WORDS) for _ in range(size // 4))[:size]
    ids = [draw.randrange(300, 1200) for _ in range(size // 5)]

    def turns(number: int, length: int) -> list[dict[str, str]]:
        said = [f"{number} " + text[:length], *(text[at : at + length] for at in range(length, size, length))]
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(said)]

    def chat(number: int, length: int) -> bytes:
        return post("/v1/chat/completions", {"messages": turns(number, length), "max_tokens": 1})

    def complete(prompt: object, **more: object) -> bytes:
        return post("/v1/completions", {"prompt": prompt, "max_tokens": 1, **more})

    return {
        "text": lambda number: complete(f"{number} " + text),
        "text, seen before": lambda number: complete(text),
        "token ids": lambda number: complete([number, *ids]),
        "token ids, echo": lambda number: complete([number, *ids], echo=True),
        "chat, 1 message": lambda number: chat(number, size),
        "chat, 2,000 messages": lambda number: chat(number, size // 2000),
        "chat, 20,000 messages": lambda number: chat(number, size // 20_000),
        "responses": lambda number: post("/v1/responses", {"input": f"{number} " + text, "max_output_tokens": 1}),
        "messages": lambda number: post("/v1/messages", {"messages": turns(number, size), "max_tokens": 1}),
        "tokenize": lambda number: post("/tokenize", {"prompt": text}),
        "tokenize, with strings": lambda number: post("/tokenize", {"prompt": text, "return_token_strs": True}),
        "detokenize": lambda number: post("/detokenize", {"tokens": ids}),
    }


@dataclass
class Rounds:
    """The longest gaps of each round, in seconds, and when each was."""

    gaps_s: list[float] = field(default_factory=list)
    spans_s: list[tuple[float, float]] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    took_s: list[float] = field(default_factory=list)


async def measure(port: int, count: int, size: int, streams: int, only: str) -> dict[str, tuple[Rounds, Rounds]]:
    """Per kind of prompt, the rounds with it and those without."""
    background = [Stream(port) for _ in range(streams)]
    tasks = [asyncio.create_task(stream.run()) for stream in background]
    while not all(len(stream.came_s) > 100 for stream in background):
        await asyncio.sleep(0.05)
    found = {}
    for kind, request in prompts(size).items():
        if only not in kind:
            continue
        loud, quiet = Rounds(), Rounds()
        await answer(port, request(count))
        for number in range(count):
            content = request(number)
            begin_s = time.monotonic()
            loud.statuses.add(await answer(port, content))
            loud.took_s.append(time.monotonic() - begin_s)
            await note(loud, background, begin_s, time.monotonic() + QUIET_S)
            begin_s = time.monotonic()
            await note(quiet, background, begin_s, begin_s + loud.took_s[-1] + QUIET_S)
        found[kind] = loud, quiet
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def note(rounds: Rounds, streams: Sequence[Stream], begin_s: float, end_s: float) -> None:
    while (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(left_s)
    rounds.spans_s.append((begin_s, end_s))
    rounds.gaps_s.append(max(stream.longest_gap_s(begin_s, end_s) for stream in streams))


# ---------------------------------------------------------------------------------------------------- all together


async def ready(port: int) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                if await answer(port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == 200:
                    return
            except (OSError, IndexError):
                pass
            await asyncio.sleep(0.1)


def at(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def longest(steps: Sequence[tuple[float, float]], rounds: Rounds) -> tuple[list[float], list[float]]:
    """Of each round, the longest time between two steps, and the most that the engine computed between two of them."""
    apart_s, computed_s = [], []
    for begin_s, end_s in rounds.spans_s:
        pairs = list(pairwise((done_s, cpu_s) for done_s, cpu_s in steps if begin_s <= done_s <= end_s))
        apart_s.append(max(later[0] - earlier[0] for earlier, later in pairs))
        computed_s.append(max(later[1] - earlier[1] for earlier, later in pairs))
    return apart_s, computed_s


def report(found: dict[str, tuple[Rounds, Rounds]], steps: Sequence[tuple[float, float]]) -> None:
    titles = ("no prompt: gap", "added to a token", "added to a step", "of which computed")
    print(f"{'':24}{'status':>7}{'took':>7}" + "".join(f"   {title:^20}" for title in titles))
    print(f"{'ms':24}{'':>7}{'p50':>7}" + "".join(f"   {'p50':>6} {'p99':>6} {'max':>6}" for _ in titles))
    for kind, (loud, quiet) in found.items():
        (loud_s, loud_cpu_s), (quiet_s, quiet_cpu_s) = longest(steps, loud), longest(steps, quiet)
        columns = [quiet.gaps_s] + [
            [value - statistics.median(without) for value in values]
            for values, without in ((loud.gaps_s, quiet.gaps_s), (loud_s, quiet_s), (loud_cpu_s, quiet_cpu_s))
        ]
        figures = "   ".join(
            " ".join(f"{at(column, share) * 1e3:6.1f}" for share in (0.5, 0.99, 1)) for column in columns
        )
        status = ",".join(map(str, loud.statuses))
        print(f"{kind:24}{status:>7}{statistics.median(loud.took_s) * 1e3:7.0f}   {figures}")


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.long_prompt", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--size", type=int, default=1 << 20, help="characters")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--only", default="", help="kinds of prompts whose name holds this")
    parser.add_argument("--step-ms", type=float, default=4.0)
    parser.add_argument("--refused", action="store_true", help="by a context that the prompt does not fit")
    parser.add_argument("--engine", nargs=2, metavar=("ENDPOINT", "TIMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    context = SHORT_CONTEXT if arguments.refused else CONTEXT
    if arguments.engine:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        run_engine(arguments.engine[0], context, arguments.step_ms / 1e3, Path(arguments.engine[1]))
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        endpoint, times, port = f"ipc://{folder}/engine.sock", Path(folder) / "times", free_port()
        engine = stack.enter_context(ExitStack())
        engine.enter_context(
            process("-m", "tests.benchmarks.long_prompt", *sys.argv[1:], "--engine", endpoint, str(times))
        )
        stack.enter_context(process("-m", "api_server", "--port", str(port), "--engine", endpoint))

        async def work() -> dict[str, tuple[Rounds, Rounds]]:
            await ready(port)
            return await measure(port, arguments.rounds, arguments.size, arguments.streams, arguments.only)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(work())
        engine.close()
        report(found, json.loads(times.read_text()))


if __name__ == "__main__":
    main()
