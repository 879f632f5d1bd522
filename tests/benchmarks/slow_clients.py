"""What clients that don't read, and clients that only wait, cost: `python -m tests.benchmarks.slow_clients`.

A real frontend behind its supervisor, and a real engine core on a made-up device, each in its own process.

The first part has some streams that are read, and then a thousand whose clients take nothing of 4,096 tokens each and
are not closed for it: how much every process grows, what the kernel keeps for their sockets, and how much later the
tokens of the streams that are read come. The second part opens ten thousand streams that get a token every few seconds
and are read: what each of them costs the frontend.

Two shared cores, one worker, MB by which a thousand that never read made each grow:

| | frontend | engine | together | kernel's sockets |
|---|---|---|---|---|
| a write buffer of 16 KiB, numbers in mailboxes, `SO_SNDBUF` alone | 255 | 50 | 305 | 148 |
| no write buffer, four bytes a token, `TCP_NOTSENT_LOWAT`, a timer for each stalled one no more | 54 | 49 | 103 | 37 |

The engine's 50 MB are its log of the tokens, 16 KB a request, and what it keeps of the blocks they are in. A write that
the kernel did not take costs uvloop about 1 KB beside its 250 bytes; merged tokens were numbers of 40 bytes each.

Of open streams, KB of the frontend's memory each, in a worker of 57 MB without any: 32.3 (10,000 of them) before, and
28.9 (6,000) with attributes in slots and without two asyncio.Events and a deque per connection.

How much later the tokens of the 64 come is not settled: before the changes, at steps of 40 ms and with other work on
the two cores, p99 was 43.0 ms without the thousand and 73.1 ms beside them; the runs since met much more other work.
"""

import argparse
import asyncio
import gc
import json
import os
import selectors
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import uvloop

from engine_core.batch import Batch
from engine_core.model.card import build_card, load_tokenizer
from engine_core.model.loader import load_config
from engine_core.model.source import ModelSource
from engine_core.scheduler import Sampled
from engine_core.tiny import MODEL_PATH
from tests.benchmarks.long_prompt import Stream, answer, post, ready
from tests.benchmarks.processes import process
from tests.e2e.server import descendants, free_port
from tests.fakes import MadeUpDevice, MadeUpEngine

CONTEXT = 1 << 16
BLOCK = 16
STARTED_S = 3600.0  # limits that shall not end a stream here
AT_ONCE = 600  # requests that the engine has not answered: it reads none while it is in a step, and a queue is finite
PAGE = os.sysconf("SC_PAGE_SIZE")
PORTIONS = (0.5, 0.99, 1)
API = "from deploy.cli import main; main()"


# ---------------------------------------------------------------------------------------------------- the engine


class PacedDevice(MadeUpDevice):
    """A step ends so long after the one before it, however many tokens are in it, if the host can keep up; with
    `sequences` of them in it, `idle_s` after."""

    def __init__(self, step_s: float, idle_s: float, sequences: int, tokens: Sequence[int]) -> None:
        super().__init__(lambda request: tokens[request.out_len % len(tokens)])
        self._pace_s = step_s
        self._idle_s = idle_s
        self._sequences = sequences
        self._due_s = 0.0

    def collect(self, pending: Batch) -> list[Sampled]:
        pace_s = self._pace_s if len(pending.sampling) < self._sequences else self._idle_s
        self._due_s = max(self._due_s + pace_s, time.monotonic())
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        return super().collect(pending)


def run_engine(endpoint: str, step_s: float, idle_s: float, sequences: int, tokens: int) -> None:
    """Until SIGTERM. There is room for so many sequences of so many tokens."""
    source = ModelSource(str(MODEL_PATH))
    architecture = load_config(source)
    card = build_card(
        source,
        architecture,
        load_tokenizer(source),
        name="made-up",
        created=0,
        vocab_size=architecture.vocab_size,
        max_model_len=CONTEXT,
    )
    blocks = sequences * (tokens // BLOCK + 4) + 100_000
    device = PacedDevice(step_s, idle_s, sequences, range(300, 400))
    gc.collect()
    gc.freeze()  # as the engine process does
    with MadeUpEngine(
        endpoint,
        device=device,
        card=card,
        num_blocks=blocks,
        max_num_seqs=sequences,
        max_num_batched_tokens=sequences * 64,
        max_queued_requests=sequences,
    ):
        signal.sigwait({signal.SIGTERM})


# ---------------------------------------------------------------------------------------------------- figures


def resident(pids: Sequence[int]) -> list[int]:
    """Bytes in memory, by process."""
    return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in pids]


def computed_s(pids: Sequence[int]) -> list[float]:
    """Processor time so far, by process."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return [(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") for fields in stats]


def kernel_memory() -> int:
    """Bytes that the kernel holds for all TCP sockets of the machine."""
    [line] = [line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")]
    return int(line.split()[-1]) * PAGE


def gaps_ms(streams: Sequence[Stream], begin_s: float, end_s: float) -> list[float]:
    """At PORTIONS of the gaps between two events of a stream."""
    gaps = sorted(
        (later - earlier) * 1e3
        for stream in streams
        for earlier, later in pairwise(time_s for time_s in stream.came_s if begin_s <= time_s <= end_s)
    )
    return [gaps[min(int(len(gaps) * portion), len(gaps) - 1)] for portion in PORTIONS]


def request(tokens: int) -> bytes:
    body = {
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stop": ["no such text", "nor this"],
    }
    return post("/v1/chat/completions", body)


async def engine_state(port: int) -> dict[str, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = await reader.read()
    writer.close()
    state: dict[str, int] = json.loads(text.partition(b"\r\n\r\n")[2])["engine"]
    return state


# ---------------------------------------------------------------------------------------------------- never reading


async def never_reading(port: int, arguments: argparse.Namespace, names: dict[str, int]) -> None:
    pids = list(names.values())
    normal = [Stream(port) for _ in range(arguments.normal)]
    tasks = [asyncio.create_task(stream.run()) for stream in normal]
    while not all(len(stream.came_s) > 100 for stream in normal):
        await asyncio.sleep(0.1)
    begin_s, cpu = time.monotonic(), [computed_s(pids)]
    await asyncio.sleep(arguments.quiet_s)
    before, before_kernel, quiet_end_s = resident(pids), kernel_memory(), time.monotonic()
    cpu.append(computed_s(pids))
    slow = []
    for _ in range(arguments.clients):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what the kernel keeps is then the server's
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        client.sendall(request(arguments.tokens))
        slow.append(client)
    while (await engine_state(port))["running"] < arguments.clients:
        await asyncio.sleep(0.1)
    peak, peak_kernel, loud_s = before, before_kernel, time.monotonic()
    cpu.append(computed_s(pids))
    running = arguments.clients + arguments.normal
    while running > arguments.normal + arguments.clients // 100:
        await asyncio.sleep(0.5)
        peak = [max(pair) for pair in zip(peak, resident(pids), strict=True)]
        peak_kernel = max(peak_kernel, kernel_memory())
        running = (await engine_state(port))["running"]
    end_s = time.monotonic()
    cpu.append(computed_s(pids))
    spans = {"before": (begin_s, quiet_end_s), "during": (loud_s, end_s), "its first 10 s": (loud_s, loud_s + 10)}
    gaps = {name: gaps_ms(normal, *span) for name, span in spans.items()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in slow:
        client.close()
    print(f"{arguments.clients} clients that never read, {arguments.tokens} tokens each, in {end_s - loud_s:.0f} s")
    for name, old, new, spent in zip(names, before, peak, zip(*cpu, strict=True), strict=True):
        quiet, loud = (spent[1] - spent[0]) / (quiet_end_s - begin_s), (spent[3] - spent[2]) / (end_s - loud_s)
        print(
            f"  {name:12} {old / 1e6:7.1f} MB, grew by {(new - old) / 1e6:6.1f} MB;"
            f" {quiet:4.0%} of a core, then {loud:4.0%}"
        )
    print(f"  {'together':12} {sum(before) / 1e6:7.1f} MB, grew by {(sum(peak) - sum(before)) / 1e6:6.1f} MB")
    print(f"  kernel, TCP: {before_kernel / 1e6:7.1f} MB, grew by {(peak_kernel - before_kernel) / 1e6:6.1f} MB")
    print(f"  gaps of {arguments.normal} streams, ms:    p50    p99    max")
    for name, values in gaps.items():
        print(f"  {name:25}" + "".join(f" {value:6.1f}" for value in values))
    print(f"  ratio at p99: {gaps['during'][1] / gaps['before'][1]:.2f}")


# ---------------------------------------------------------------------------------------------------- waiting


class Waiting:
    """Connections that are opened and read, by a thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.EpollSelector()
        self._stopping = False
        self._thread = threading.Thread(target=self._read)
        self.begun: set[socket.socket] = set()  # those that have had something
        self.ended = 0
        self._open: list[socket.socket] = []

    def open(self, data: bytes) -> None:
        client = socket.create_connection(("127.0.0.1", self._port))
        client.sendall(data)
        self._open.append(client)
        self._selector.register(client, selectors.EVENT_READ)

    def _read(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(0.2):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                if b"data: " in (data := client.recv(1 << 16)):
                    self.begun.add(client)
                if not data:
                    self.ended += 1
                    self._selector.unregister(client)

    def __enter__(self) -> "Waiting":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping = True
        self._thread.join()
        for client in self._open:
            client.close()
        self._selector.close()


async def waiting(port: int, arguments: argparse.Namespace, names: dict[str, int]) -> None:
    frontends = [pid for name, pid in names.items() if name.startswith("frontend")]
    for _ in range(20):
        await answer(port, post("/v1/completions", {"prompt": "Hello", "max_tokens": 1}))
    before, before_kernel = sum(resident(frontends)), kernel_memory()
    with Waiting(port) as clients:
        for number in range(arguments.open):
            while number - len(clients.begun) >= AT_ONCE:
                await asyncio.sleep(0.05)
            clients.open(request(1000))
            await asyncio.sleep(0)
        deadline_s = time.monotonic() + STARTED_S
        while len(clients.begun) < arguments.open and time.monotonic() < deadline_s:
            await asyncio.sleep(0.5)
        opened = sum(resident(frontends))
        await asyncio.sleep(arguments.quiet_s)
        after, after_kernel = sum(resident(frontends)), kernel_memory()
        print(f"{len(clients.begun)} open streams ({clients.ended} ended), frontend {before / 1e6:.1f} MB without them")
        for name, value in (("all begun", opened), (f"{arguments.quiet_s:g} s later", after)):
            each = (value - before) / arguments.open
            print(f"  {name:12} {value / 1e6:7.1f} MB, {each / 1e3:5.1f} KB for a stream")
        print(f"  kernel, TCP: {(after_kernel - before_kernel) / arguments.open / 1e3:.1f} KB for a stream, both ends")


# ---------------------------------------------------------------------------------------------------- all together


@contextmanager
def system(workers: int, *engine_settings: float) -> Iterator[tuple[int, int, int]]:
    """The port, the engine's process and the supervisor's."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        endpoint, port = f"ipc://{folder}/engine.sock", free_port()
        numbers = [str(number) for number in engine_settings]
        engine = stack.enter_context(process("-m", "tests.benchmarks.slow_clients", "--engine", endpoint, *numbers))
        options = {
            "--engine": endpoint,
            "--port": str(port),
            "--api-workers": str(workers),
            "--shutdown-timeout": "0",
            **dict.fromkeys(("--stall-timeout", "--first-token-timeout", "--request-timeout"), str(STARTED_S)),
        }
        flat = [word for pair in options.items() for word in pair]
        yield port, engine, stack.enter_context(process("-c", API, "api", *flat))


def measure(arguments: argparse.Namespace, part: str) -> None:
    if part == "slow":
        settings = (
            arguments.step_ms / 1e3,
            arguments.step_ms / 1e3,
            arguments.clients + arguments.normal,
            arguments.tokens,
        )
    else:
        settings = (arguments.idle_s / 5, arguments.idle_s, arguments.open, 1000)
    with system(arguments.workers, *settings) as (port, engine, supervisor):

        async def work() -> None:
            await ready(port)
            frontends = [pid for pid, command in descendants(supervisor).items() if "-m api_server" in command]
            names = {"engine": engine, "supervisor": supervisor}
            names |= {f"frontend {place + 1}": pid for place, pid in enumerate(frontends)}
            await (never_reading if part == "slow" else waiting)(port, arguments, names)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.slow_clients", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, help="that never read")
    parser.add_argument("--tokens", type=int, default=4096, help="for each of them")
    parser.add_argument("--normal", type=int, default=64, help="streams that are read")
    parser.add_argument("--step-ms", type=float, default=40.0)
    parser.add_argument("--quiet-s", type=float, default=20.0, help="measured without, and after")
    parser.add_argument("--open", type=int, default=10_000, help="streams that wait")
    parser.add_argument("--idle-s", type=float, default=10.0, help="between two of their tokens")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=("slow", "open"))
    parser.add_argument("--engine", nargs=5, help=argparse.SUPPRESS)  # its endpoint and run_engine's settings
    arguments = parser.parse_args()
    if arguments.engine:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        endpoint, step_s, idle_s, sequences, tokens = arguments.engine
        run_engine(endpoint, float(step_s), float(idle_s), int(sequences), int(tokens))
        return
    for part in ("slow", "open"):
        if arguments.only in (None, part):
            measure(arguments, part)


if __name__ == "__main__":
    main()
