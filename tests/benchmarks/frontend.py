"""What a streamed token costs the frontend process: `python -m tests.benchmarks.frontend`.

A real frontend between a real engine core on a made-up device, which steps at a fixed rate, and a client that only
reads. All three are processes of their own. Every stream is a chat with usage, armed stop strings and metrics, and
every token is an event of its own. Told are the frontend's processor time per token, the kernel's share of it, and
where the rest goes: the parts are timed by themselves, on the same objects, in this process. `reference` is what the
same client and machine get from the kernel alone: one `send` of the same bytes for every token.

Latency is from the end of the step that made a token to the read that brought it, at the fixed rate. Saturation is the
same with a device that takes no time at all.

What was tried, on two shared cores at 256 streams, in microseconds per event (the naive application beside it):

    a task woken for every token, through ASGI's send                      49-55, other load on the machine
    stop strings looked for only where one can begin, one-token path       detokenising 5.0 -> 0.9
    written by who receives from the engine, if the stream is idle         21.0-21.7, other load
    slots instead of dicts on the way, no write buffer of our own          20.5-21.5 (33.3-40.3), 40 steps/s
    the same, read by a client that sleeps between two looks               18.8-19.7 (32.0-34.3)

In a loop that is all the process does, the way from the wire to the connection's write takes 2.5 of them: the rest is
the kernel, uvloop, and memory that 256 streams push out of the caches between two steps. Saturated: 62,000 tokens/s.
"""

import argparse
import gc
import json
import os
import selectors
import signal
import socket
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from engine_core.batch import Batch
from engine_core.model.card import build_card, load_tokenizer
from engine_core.model.loader import load_config
from engine_core.model.source import ModelSource
from engine_core.scheduler import Sampled
from engine_core.tiny import MODEL_PATH
from protocol.messages import ModelCard
from tests.benchmarks.frontend_parts import parts
from tests.benchmarks.processes import process
from tests.e2e.server import free_port
from tests.fakes import MadeUpDevice, MadeUpEngine

CONTEXT = 65_536
START_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")
STORY = (
    "Once upon a time a small fox lived at the edge of a wood. Every morning it went down to the river, where two "
    "birds told it what they had seen. One day they said nothing at all, and the fox understood that winter was near. "
)
EVENT = b"data: {"


def body(max_tokens: int) -> bytes:
    content = {
        "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["\n\nUser:", "THE END"],
    }
    text = json.dumps(content).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


# ---------------------------------------------------------------------------------------------------- the engine


class SteadyDevice(MadeUpDevice):
    """Ends a step every `period_s`, if it can, and writes down when."""

    def __init__(self, period_s: float, tokens: Sequence[int]) -> None:
        super().__init__(lambda request: tokens[request.out_len % len(tokens)])
        self.period_s = period_s
        self.due_s = 0.0
        self.done_s: list[float] = []

    def collect(self, pending: Batch) -> list[Sampled]:
        self.due_s = max(self.due_s + self.period_s, time.monotonic())
        time.sleep(max(0.0, self.due_s - time.monotonic()))
        sampled = super().collect(pending)
        self.done_s.append(time.monotonic())
        return sampled


def made_up_card() -> tuple[ModelCard, list[int]]:
    """The built-in model's, with a context for long streams, and the tokens of a story."""
    source = ModelSource(str(MODEL_PATH))
    architecture, files = load_config(source), load_tokenizer(source)
    card = build_card(
        source,
        architecture,
        files,
        name="made-up",
        created=0,
        vocab_size=architecture.vocab_size,
        max_model_len=CONTEXT,
    )
    from tokenizers import Tokenizer

    return card, Tokenizer.from_str(card.tokenizer.decode()).encode(STORY).ids


def run_engine(endpoint: str, period_s: float, streams: int, times: Path) -> None:
    """Until SIGTERM; then writes when its steps were done."""
    card, tokens = made_up_card()
    device = SteadyDevice(period_s, tokens)
    gc.collect()
    gc.freeze()
    with MadeUpEngine(endpoint, device=device, card=card, num_blocks=streams * 1024 + 1, max_num_seqs=streams):
        signal.sigwait({signal.SIGTERM})
    times.write_text(json.dumps(device.done_s))


# ---------------------------------------------------------------------------------------------------- the client


@dataclass
class Seen:
    """What a client has read: events, and for some of its reads when they were and how many events they brought."""

    events: int = 0
    reads: list[tuple[float, int]] = field(default_factory=list)


class Client:
    """Reads all streams with as little work as it can."""

    def __init__(self, port: int, count: int) -> None:
        self._selector = selectors.EpollSelector()
        self.sockets = []
        for _ in range(count):
            stream = socket.create_connection(("127.0.0.1", port))
            stream.setblocking(False)
            self._selector.register(stream, selectors.EVENT_READ)
            self.sockets.append(stream)

    def ask(self, request: bytes) -> None:
        for stream in self.sockets:
            stream.send(request)

    def until_all_began(self) -> None:
        waiting = set(self.sockets)
        deadline = time.monotonic() + START_S
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} streams did not begin"
            for key, _ in self._selector.select(1.0):
                stream = key.fileobj
                assert isinstance(stream, socket.socket)
                data = stream.recv(1 << 16)
                assert data, "a stream ended early"
                if EVENT in data:
                    waiting.discard(stream)

    def read(self, seconds: float) -> Seen:
        seen, buffer = Seen(), bytearray(1 << 16)
        view = memoryview(buffer)
        ends_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < ends_s:
            for key, _ in self._selector.select(0.1):
                size = key.fileobj.recv_into(view)  # type: ignore[union-attr]
                assert size, "a stream ended early"
                count = buffer.count(EVENT, 0, size)
                seen.events += count
                seen.reads.append((now_s, count))
        return seen

    def close(self) -> None:
        self._selector.close()
        for stream in self.sockets:
            stream.close()


# ---------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Spent:
    """Processor seconds of one process, of which `kernel_s` in the kernel, and its memory."""

    all_s: float
    kernel_s: float
    rss_mb: float

    @classmethod
    def of(cls, pid: int) -> "Spent":
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, kernel = int(fields[11]) / TICKS, int(fields[12]) / TICKS
        tasks = Path(f"/proc/{pid}/task").iterdir()
        all_s = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        status = Path(f"/proc/{pid}/status").read_text()
        rss_mb = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        return cls(all_s, kernel / max(user + kernel, 1e-9) * all_s, rss_mb)


def until_ready(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1.0) as client:
                client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if client.recv(64).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass
        time.sleep(0.05)  # between two looks
    raise TimeoutError("the frontend did not become ready")


def at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass
class Result:
    """Of one run: processor microseconds per event, and latencies in seconds."""

    event_us: float
    kernel_us: float
    events_per_s: float
    rss_mb: float
    tokens_per_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


def run(streams: int, period_s: float, seconds: float) -> Result:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        endpoint, times, port = f"ipc://{folder}/engine.sock", Path(folder) / "times", free_port()
        engine = stack.enter_context(ExitStack())
        own = ("-m", "tests.benchmarks.frontend", "--engine", endpoint, str(times), str(period_s))
        engine.enter_context(process(*own, "--streams", str(streams)))
        pid = stack.enter_context(process("-m", "api_server", "--port", str(port), "--engine", endpoint))
        until_ready(port)
        result, began_s, reads = watch(port, pid, streams, seconds)
        engine.close()
        done_s: list[float] = json.loads(times.read_text())
    steps = bisect_right(done_s, began_s + seconds) - bisect_right(done_s, began_s)
    result.tokens_per_s = steps * streams / seconds
    result.latencies_s = [read_s - done_s[bisect_right(done_s, read_s) - 1] for read_s, count in reads if count == 1]
    return result


def run_naive(streams: int, period_s: float, seconds: float) -> Result:
    port = free_port()
    with process("-m", "tests.benchmarks.naive", str(port), str(period_s)) as pid:
        until_ready(port)
        return watch(port, pid, streams, seconds)[0]


def watch(port: int, pid: int, streams: int, seconds: float) -> tuple[Result, float, list[tuple[float, int]]]:
    """What reading all streams costs the process; when that began, and the reads."""
    client = Client(port, streams)
    try:
        client.ask(body(60_000))
        client.until_all_began()
        client.read(1.0)
        before, began_s = Spent.of(pid), time.monotonic()
        seen = client.read(seconds)
        after = Spent.of(pid)
    finally:
        client.close()
    all_us = (after.all_s - before.all_s) / seen.events * 1e6
    kernel_us = (after.kernel_s - before.kernel_s) / seen.events * 1e6
    return Result(all_us, kernel_us, seen.events / seconds, after.rss_mb), began_s, seen.reads


def reference(streams: int, count: int) -> float:
    """Microseconds of the kernel for one `send` of an event, into sockets that this process reads in between."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=streams))
        pairs = []
        for _ in range(streams):
            near = stack.enter_context(socket.create_connection(listener.getsockname()))
            far = stack.enter_context(listener.accept()[0])
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pairs.append((near, far))
        event, spent_s = b"x" * 250, 0.0
        for _ in range(max(1, count // streams)):
            began_s = time.thread_time()
            for _, far in pairs:
                far.send(event)
            spent_s += time.thread_time() - began_s
            for near, _ in pairs:
                near.recv(1 << 16)
    return spent_s / (max(1, count // streams) * streams) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.frontend", description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps-per-s", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-saturation", action="store_true")
    parser.add_argument("--engine", nargs=3, metavar=("ENDPOINT", "TIMES", "PERIOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        endpoint, times, period = options.engine
        run_engine(endpoint, float(period), options.streams, Path(times))
        return
    send_us = reference(options.streams, 100_000)
    print(f"kernel's own send of an event: {send_us:.1f} us")
    results, naive = [], []
    for _ in range(options.rounds):  # in turn, so that other load on the machine meets both
        results.append(run(options.streams, 1 / options.steps_per_s, options.seconds))
        naive.append(run_naive(options.streams, 1 / options.steps_per_s, options.seconds))
        for name, result in (("frontend", results[-1]), ("naive", naive[-1])):
            print(
                f"{name:9}{result.event_us:6.1f} us/event, of which kernel {result.kernel_us:4.1f}; "
                f"{result.events_per_s:,.0f} events/s, {result.tokens_per_s:,.0f} tokens/s; latency ms p50 "
                f"{at(result.latencies_s, 0.5) * 1e3:.1f} p99 {at(result.latencies_s, 0.99) * 1e3:.1f}; "
                f"{result.rss_mb:.0f} MB"
            )
    best, naive_us = (min(some, key=lambda result: result.event_us) for some in (results, naive))
    print(f"best: {best.event_us / naive_us.event_us:.2f} of naive, {best.event_us / send_us:.2f} sends")
    costs: dict[str, float] = parts(made_up_card()[0], STORY, options.streams)
    rest = best.event_us - best.kernel_us - sum(costs.values())
    for name, cost_us in {**costs, "send and event loop": rest, "kernel": best.kernel_us}.items():
        print(f"  {name:24}{cost_us:6.2f} us")
    if not options.no_saturation:
        result = run(options.streams, 0.0, options.seconds)
        print(
            f"saturated: {result.tokens_per_s:,.0f} tokens/s in {result.events_per_s:,.0f} events/s, "
            f"{result.event_us * result.events_per_s / result.tokens_per_s:.1f} us/token"
        )


if __name__ == "__main__":
    main()
