"""A real engine core on a made-up device: every part but the model is the one that serves."""

import struct
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import zmq

from engine_core.batch import Batch
from engine_core.cache.blocks import BlockPool
from engine_core.cache.prefix import PrefixIndex
from engine_core.core import EngineCore, StepTime
from engine_core.request import Request
from engine_core.scheduler import Sampled, Scheduler
from engine_core.stats import Stats
from protocol import messages as wire
from protocol.channel import EngineChannel
from protocol.prompt_logprobs import PromptLogprobs
from protocol.sampling import SamplingParams

DEADLINE_S = 10.0


def echo(request: Request) -> int:
    """Gives the prompt back, over and over."""
    return request.tokens[request.out_len % request.prompt_len]


def made_up_scores(tokens: Sequence[int], positions: range, sampling: SamplingParams) -> list[PromptLogprobs]:
    """Of a prompt's positions: of each, its number tells the log probability and the rank; the alternatives are the
    ids from the token's own on, each less likely than the one before by one. In portions of ten."""
    top = sampling.prompt_logprobs or 0
    portions = []
    for first in range(positions.start, positions.stop, 10):
        some = range(first, min(first + 10, positions.stop))
        portions.append(
            PromptLogprobs(
                first,
                top,
                struct.pack(f"<{len(some)}d", *(-position / 8 for position in some)),
                struct.pack(f"<{len(some)}I", *some),
                b"".join(struct.pack(f"<{top}I", *range(tokens[at], tokens[at] + top)) for at in some),
                b"".join(struct.pack(f"<{top}d", *(-at / 8 - place for place in range(top))) for at in some),
            )
        )
    return portions


class MadeUpDevice:
    """Yields what `token_of` says. A closed `gate` holds every step, as a long one would."""

    def __init__(self, token_of: Callable[[Request], int] = echo, step_s: float = 0.0) -> None:
        self.token_of = token_of
        self.step_s = step_s
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0

    def launch(self, batch: Batch) -> Batch:
        return batch

    def collect(self, pending: Batch) -> list[Sampled]:
        self.gate.wait(DEADLINE_S)
        if self.step_s:
            time.sleep(self.step_s)  # the device's own time, not a wait for a state
        self.steps += 1
        for row in pending.scoring:
            row.prompt_logprobs += made_up_scores(row.request.tokens, row.targets, row.request.sampling)
        return [Sampled(self.token_of(request)) for request in pending.sampling]


def card(**changes: object) -> wire.ModelCard:
    fields: dict[str, object] = {
        "name": "made-up",
        "created": 1_700_000_000,
        "tokenizer": b"",
        "tokenizer_digest": b"",
        "chat_template": None,
        "special_tokens": {},
        "eos_token_ids": [0],
        "vocab_size": 1000,
        "max_model_len": 4096,
    }
    return wire.ModelCard(**{**fields, **changes})  # type: ignore[arg-type]


class MadeUpEngine:
    """An engine core in a thread, listening on `endpoint` while in the `with`."""

    def __init__(
        self,
        endpoint: str,
        *,
        device: MadeUpDevice | None = None,
        card: wire.ModelCard | None = None,
        epoch: int = 1,
        num_blocks: int = 257,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        max_queued_requests: int = 512,
    ) -> None:
        self.device = device or MadeUpDevice()
        self.card = card or globals()["card"]()
        index = PrefixIndex()
        self.scheduler = Scheduler(
            pool=BlockPool(num_blocks, on_evict=index.drop),
            index=index,
            block_size=16,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            eos_token_ids=self.card.eos_token_ids,
        )
        limits = wire.Limits((num_blocks - 1) * 16, max_num_seqs, max_queued_requests, 0)
        self.channel = EngineChannel(endpoint)
        self.core = EngineCore(
            channel=self.channel,
            scheduler=self.scheduler,
            runner=self.device,
            welcome=wire.Welcome(wire.PROTOCOL_VERSION, epoch, self.card, limits),
            stats=Stats(self.card.name, 16, num_blocks - 1),
            clock=time.monotonic,
            step_time=StepTime(0.001, 0.0),
        )
        self._killed = False
        self._thread = threading.Thread(target=self.core.run, name="made-up-engine")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._killed:
            self.core.drain(0.0)
            self._end()

    def kill(self) -> None:
        """As SIGKILL would: without a word."""
        self._killed = True
        self.core._dismiss = lambda: None  # type: ignore[method-assign]
        self.core._stopping = True
        self._end()

    def _end(self) -> None:
        self.device.gate.set()
        self._wake()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self.channel.close()

    def _wake(self) -> None:
        """An idle core looks up once a second, or when something comes in: an empty frame, which is no command."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 100)
            socket.connect(self.channel.endpoint)
            socket.send(b"")
