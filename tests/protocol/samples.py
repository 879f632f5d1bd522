"""One of every message, with every field set to something that is not its default."""

import struct

from protocol import messages as wire
from protocol.metrics import EngineMetrics
from protocol.prompt_logprobs import NO_MORE, PromptLogprobs
from protocol.sampling import Grammar, GrammarKind, SamplingParams
from protocol.tokens import pack

SAMPLING = SamplingParams(
    max_tokens=17,
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.1,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    min_tokens=2,
    ignore_eos=True,
    stop_token_ids=(5, 6),
    logit_bias=((1, -100.0), (2, 3.5)),
    allowed_token_ids=(1, 2, 3),
    bad_words=((4,), (5, 6)),
    logprobs=3,
    prompt_logprobs=0,
    grammar=Grammar(GrammarKind.LARK, 'start: "é"', "tools"),
)
CARD = wire.ModelCard(
    name="m",
    created=1_700_000_000,
    tokenizer=b'{"version":"1.0"}',
    tokenizer_digest=b"d" * 16,
    chat_template="{{ messages }}",
    special_tokens={"bos_token": "<s>"},
    eos_token_ids=[2, 3],
    vocab_size=100,
    max_model_len=2048,
    defaults=wire.SamplingDefaults(0.6, 0.95, 20, 0.01, 1.05),
)
LIMITS = wire.Limits(kv_tokens=4096, max_num_seqs=8, max_queued_requests=16, max_queued_tokens=0, block_size=16)

METRICS = EngineMetrics("m", 16, 100)
METRICS.gauges["vllm:num_requests_running"] = 3.0
METRICS.counters["vllm:prompt_tokens_total"] = 12
METRICS.finished["stop"] = 2
METRICS.observe("vllm:time_to_first_token_seconds", 0.03, 2)

PROMPT = PromptLogprobs(
    pos=3,
    top=2,
    logprobs=struct.pack("<2d", -0.5, -9.25),
    ranks=struct.pack("<2I", 1, 7),
    top_ids=struct.pack("<4I", 5, 6, 9, 0),
    top_logprobs=struct.pack("<4d", -0.5, -1.5, -0.125, NO_MORE),
)

COMMANDS: list[wire.Command] = [
    wire.Hello(wire.PROTOCOL_VERSION, b"f" * 16, b"b" * 16, b"d" * 16),
    wire.Generate(
        epoch=3,
        rid="chatcmpl-1",
        prompts=[pack([1, 2, 3]), pack([4])],
        sequences=[wire.Sequence(7, 0, 0), wire.Sequence(8, 0, 1, [9, 9]), wire.Sequence(9, 1)],
        sampling=SAMPLING,
        seed=-(2**63),
        key=b"k" * 16,
        salt=b"s",
        priority=-2,
        meta=b"\x00\xff",
    ),
    wire.Abort([1, 2, 2**62]),
    wire.Stop(4, 12),
    wire.Cancel("chatcmpl-1", b"k" * 16),
    wire.Attach("chatcmpl-1", 7, b"k" * 16, [3, 0]),
    wire.Detach([1, 2]),
]
EVENTS: list[wire.Event] = [
    wire.Welcome(wire.PROTOCOL_VERSION, 3, CARD, LIMITS),
    wire.Accepted(3, "chatcmpl-1"),
    wire.Rejected(3, "chatcmpl-1", "queue_full", "full", "n"),
    wire.Step(
        3,
        1234,
        2.5,
        [
            wire.Delta(7, 0, [5], first=wire.FirstToken(0.01, 0.02, 16)),
            wire.Delta(8, 4, [5, 6], wire.FinishReason.STOP, 6, None, [wire.TokenLogprobs(-0.5, [5, 6], [-0.5, -1.5])]),
            wire.Delta(9, 1, [], wire.FinishReason.LENGTH),
            wire.Delta(10, 0, [], prompt=PROMPT),
        ],
        wire.Load(3, 2, 0.5, True),
    ),
    wire.Failed(3, [7, 8], "engine_crash", "it died"),
    wire.Dying(3, "out of memory"),
    wire.Metrics(3, METRICS, 41),
    wire.Cancelled(3, "chatcmpl-1", True),
    wire.Attached(3, "chatcmpl-1", b"meta", 2, [4]),
    wire.Unknown(3, "chatcmpl-1"),
    wire.Taken(3, [7, 8]),
]
