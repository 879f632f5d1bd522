"""A whole engine in a thread, around a small random model with the built-in model's tokenizer: everything is real but
the wire, which is a queue."""

import json
import queue
import threading
import time
from functools import cache
from itertools import count
from types import TracebackType
from typing import Any, Self

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from engine_core.attention.reference import ReferenceAttention
from engine_core.cache.blocks import BlockPool
from engine_core.cache.kv import KVCache
from engine_core.cache.prefix import PrefixIndex
from engine_core.core import EngineCore, StepTime
from engine_core.grammar.grammars import Grammars
from engine_core.runner import ModelRunner, Pending
from engine_core.sampling.sampler import Sampler
from engine_core.scheduler import Scheduler
from engine_core.stats import Stats
from engine_core.tiny import MODEL_PATH
from protocol import messages as wire
from protocol.channel import EngineChannel, Sent
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from protocol.tokens import pack
from tests.engine_core.serving import adapt

TOKENIZER = (MODEL_PATH / "tokenizer.json").read_bytes()
EOS = [2, 0]
WIDTH = 3100  # of the logits: some more than there are tokens
CONTEXT = 512
BLOCK = 16
PEER = b"peer"
DEADLINE_S = 60.0
EPOCH = 7

CARD = wire.ModelCard("m", 0, TOKENIZER, b"", None, {}, EOS, WIDTH, CONTEXT)


def model() -> PreTrainedModel:
    """The same weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WIDTH,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(TOKENIZER.decode())


def encode(text: str) -> list[int]:
    ids: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return ids


def schema(**fields: Any) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(fields))


def regex(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text)


def lark(text: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text)


def choice(*texts: str) -> Grammar:
    return Grammar(GrammarKind.CHOICE, json.dumps(texts))


class QueueChannel(EngineChannel):
    """What comes down is put into `commands`, what goes up is handed to `on_event`."""

    def __init__(self) -> None:
        self.commands: queue.SimpleQueue[tuple[bytes, wire.Command]] = queue.SimpleQueue()
        self.events: queue.SimpleQueue[wire.Event] = queue.SimpleQueue()

    def receive(self, timeout_s: float) -> list[tuple[bytes, wire.Command]]:
        taken = []
        try:
            taken.append(self.commands.get(timeout=timeout_s) if timeout_s else self.commands.get_nowait())
            while True:
                taken.append(self.commands.get_nowait())
        except queue.Empty:
            return taken

    def send(self, peer: bytes, event: wire.Event) -> Sent:
        self.events.put(event)
        return Sent.YES


class Reply:
    """What the engine says to one request of one sequence."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.rid = f"r{handle}"
        self.answer: wire.Accepted | wire.Rejected | None = None
        self.tokens: list[int] = []
        self.finish: wire.FinishReason | None = None
        self.failed: wire.Failed | None = None

    @property
    def over(self) -> bool:
        return isinstance(self.answer, wire.Rejected) or self.finish is not None or self.failed is not None

    @property
    def text(self) -> str:
        """Without the end of sequence."""
        return str(tokenizer().decode([token for token in self.tokens if token not in EOS], skip_special_tokens=False))


class Engine:
    """Serves while in the `with`."""

    def __init__(
        self, *, max_num_seqs: int = 8, num_blocks: int = 257, overlap: int = 0, card: wire.ModelCard = CARD
    ) -> None:
        adapter = adapt(model(), CONTEXT)
        cache = KVCache(ReferenceAttention(BLOCK, adapter.dtype, adapter.device), adapter.geometries, num_blocks, BLOCK)
        index = PrefixIndex()
        self.scheduler = Scheduler(
            pool=BlockPool(num_blocks, on_evict=index.drop),
            index=index,
            block_size=BLOCK,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=256,
            eos_token_ids=card.eos_token_ids,
        )
        self.grammars = Grammars(card, max_num_seqs)
        sampler = Sampler(WIDTH, max_num_seqs, card.eos_token_ids, adapter.device, self.grammars.followings)
        self.runner = ModelRunner(adapter, cache, sampler, max_num_seqs=max_num_seqs, max_model_len=CONTEXT)
        self.channel = QueueChannel()
        self.core: EngineCore[Pending] = EngineCore(
            channel=self.channel,
            scheduler=self.scheduler,
            runner=self.runner,
            welcome=wire.Welcome(
                wire.PROTOCOL_VERSION, EPOCH, card, wire.Limits((num_blocks - 1) * BLOCK, max_num_seqs, 512, 0)
            ),
            stats=Stats("m", BLOCK, num_blocks - 1),
            clock=time.monotonic,
            step_time=StepTime(0.001, 0.0),
            overlap=overlap,
            grammars=self.grammars,
        )
        self.died: BaseException | None = None
        self._handles = count()
        self._replies: dict[int, Reply] = {}
        self._named: dict[str, Reply] = {}
        self._thread = threading.Thread(target=self._run, name="engine")

    def _run(self) -> None:
        try:
            self.core.run()
        except BaseException as error:
            self.died = error

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the model is tiny
        self.tell(wire.Hello(wire.PROTOCOL_VERSION, b"f" * 16, b"b" * 16))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.core.drain(0.0)
        self._thread.join(DEADLINE_S)
        torch.set_num_threads(self._threads)
        assert not self._thread.is_alive()
        if kind is None:
            assert self.died is None, self.died

    def tell(self, command: wire.Command, peer: bytes = PEER) -> None:
        self.channel.commands.put((peer, command))

    def ask(
        self,
        grammar: Grammar | None,
        prompt: str = "Hello",
        *,
        seed: int = 0,
        out: tuple[int, ...] = (),
        peer: bytes = PEER,
        **sampling: Any,
    ) -> Reply:
        """Sends it; `wait` for what comes of it."""
        params = SamplingParams(**{"max_tokens": 120, "temperature": 2.0, "grammar": grammar, **sampling})
        reply = self.expect()
        sequence = wire.Sequence(reply.handle, 0, out=list(out))
        self.tell(wire.Generate(EPOCH, reply.rid, [pack(encode(prompt))], [sequence], params, seed), peer)
        return reply

    def expect(self) -> Reply:
        """For a command that the caller makes."""
        reply = Reply(next(self._handles))
        self._replies[reply.handle] = self._named[reply.rid] = reply
        return reply

    def wait(self, *replies: Reply) -> None:
        """Until they are over."""
        self.until(lambda: all(reply.over for reply in replies))

    def until(self, condition: Any) -> None:
        """Takes in events until it holds."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.died is None, self.died
            assert time.monotonic() < deadline_s, "it never came"
            try:
                self._take(self.channel.events.get(timeout=0.1))
            except queue.Empty:
                continue

    def _take(self, event: wire.Event) -> None:
        match event:
            case wire.Accepted(rid=rid) | wire.Rejected(rid=rid):
                self._named[rid].answer = event
            case wire.Step(deltas=deltas):
                for delta in deltas:
                    reply = self._replies[delta.handle]
                    reply.tokens += delta.tokens
                    reply.finish = delta.finish
            case wire.Failed(handles=handles):
                for handle in handles:
                    self._replies[handle].failed = event

    def sentences(self, grammar: Grammar, number: int, **sampling: Any) -> list[str]:
        """Outputs of several seeds, all of which must have been accepted."""
        replies = [self.ask(grammar, seed=seed, **sampling) for seed in range(number)]
        self.wait(*replies)
        for reply in replies:
            assert isinstance(reply.answer, wire.Accepted), reply.answer
            assert reply.failed is None, reply.failed
        return [reply.text for reply in replies]
