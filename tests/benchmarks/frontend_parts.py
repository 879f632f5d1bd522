"""What the parts of the frontend's work for a token cost by themselves, on the objects that serve: one engine's step
for many streams at a time, as it comes from the wire."""

import asyncio
import gc
import time
from itertools import pairwise

import msgspec

from api_server.admission import Admission
from api_server.job import Job
from api_server.render.chat import ChatRenderer
from api_server.schema.decode import decode
from api_server.schema.requests import ChatRequest
from api_server.text import Answer
from protocol.codec import decode_event, encode
from protocol.messages import Delta, Limits, Load, ModelCard, Step

STEPS = 400
BODY = {
    "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
    "max_tokens": 50_000,
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["\n\nUser:", "THE END"],
}


def parts(card: ModelCard, story: str, streams: int) -> dict[str, float]:
    """Processor microseconds per token, by part."""
    limits = Limits(kv_tokens=1 << 30, max_num_seqs=streams, max_queued_requests=streams, max_queued_tokens=0)
    admission = Admission(card, limits)
    tokens = admission.encoder.encode_now([story], add_special=False)[0]
    steps = [
        Step(1, step, 0.0, [Delta(at, step, [tokens[step % len(tokens)]]) for at in range(streams)], Load(streams))
        for step in range(STEPS)
    ]
    frames = list(map(encode, steps))
    jobs = [_job(admission) for _ in range(streams)]
    answers, renderers = [Answer(job) for job in jobs], [ChatRenderer(job) for job in jobs]
    spent_s = dict.fromkeys(("decode", "detokenise, stop strings", "render"), 0.0)
    gc.collect()
    gc.freeze()  # as the frontend does
    for frame in frames:
        times_s = [time.thread_time()]
        step = decode_event(frame)
        assert isinstance(step, Step)
        times_s.append(time.thread_time())
        pieces = [answers[delta.handle].feed(0, delta) for delta in step.deltas]
        times_s.append(time.thread_time())
        for renderer, piece in zip(renderers, pieces, strict=True):
            if piece is not None:
                renderer.chunk(piece, None)
        times_s.append(time.thread_time())
        for part, (earlier_s, later_s) in zip(spent_s, pairwise(times_s), strict=True):
            spent_s[part] += later_s - earlier_s
    return {part: each_s / STEPS / streams * 1e6 for part, each_s in spent_s.items()}


def _job(admission: Admission) -> Job:
    request = decode(msgspec.json.encode(BODY), ChatRequest)
    return asyncio.run(admission.chat(request))
