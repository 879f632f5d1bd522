"""Puts an engine together: model, cache, runner, scheduler, in the order in which each needs the one before."""

import logging
import os
import time
from typing import Final

import torch

from engine_core.attention.select import select
from engine_core.cache.blocks import BlockPool
from engine_core.cache.kv import KVCache, count_blocks, default_memory
from engine_core.cache.prefix import PrefixIndex
from engine_core.config import Config
from engine_core.core import EngineCore, StepTime
from engine_core.errors import CannotStart
from engine_core.grammar.grammars import Grammars
from engine_core.memory import readable
from engine_core.model import loader
from engine_core.model.adapter import ModelAdapter
from engine_core.model.card import build_card, load_tokenizer
from engine_core.model.context import max_model_len
from engine_core.model.source import ModelSource
from engine_core.runner import ModelRunner, Pending
from engine_core.sampling.sampler import Sampler
from engine_core.scheduler import Scheduler
from engine_core.stats import Stats
from engine_core.tiny import MODEL_NAME
from protocol.channel import EngineChannel
from protocol.messages import PROTOCOL_VERSION, Limits, ModelCard, Welcome

logger: Final = logging.getLogger("tokenwire.engine_core")

BATCHED_TOKENS: Final = {"cpu": 2048, "cuda": 8192}
REHEARSAL_TOKENS: Final = 64
# fp32 logits of a step for log probabilities of prompts. On a CPU 110 rows of 152k: others wait a tenth of a second.
PROMPT_LOGITS_BYTES: Final = {"cpu": 64 << 20, "cuda": 256 << 20}


def load_model(config: Config, source: ModelSource) -> tuple[ModelAdapter, ModelCard]:
    """Raises CannotStart."""
    architecture = loader.load_config(source)
    device = loader.pick_device(config.device)
    dtype = loader.pick_dtype(config.dtype, architecture, device)
    dummy = config.load_format == "dummy"
    tokenizer = load_tokenizer(source, optional=dummy)
    length = max_model_len(architecture, config.max_model_len, tokenizer.max_length)
    loaded = loader.load(source, architecture, dtype=dtype, device=device, dummy=dummy)
    adapter = ModelAdapter(loaded, length)
    card = build_card(
        source,
        architecture,
        tokenizer,
        name=config.served_model_name or config.model or MODEL_NAME,
        created=int(time.time()),
        vocab_size=adapter.vocab_size,
        max_model_len=length,
        chat_template=config.chat_template,
    )
    logger.info("model %s: %s in %s on %s, %d tokens", card.name, adapter.model_type, dtype, device, length)
    return adapter, card


def make_cache(config: Config, adapter: ModelAdapter, max_step_tokens: int) -> KVCache:
    """Raises CannotStart if the memory does not do."""
    rows = min(config.max_num_seqs + max_num_scored(adapter), max_step_tokens)
    backend = select(adapter.device, adapter.dtype, config.block_size)
    memory = config.kv_cache_memory
    if memory is None:
        memory = default_memory(adapter.device, lambda: adapter.rehearse(max_step_tokens, rows))
    blocks = count_blocks(memory, backend, adapter.geometries, adapter.device)
    cache = KVCache(backend, adapter.geometries, blocks, config.block_size)
    logger.info(
        "KV cache: %s for %d tokens in blocks of %d, attention: %s",
        readable(cache.nbytes),
        cache.num_tokens,
        cache.block_size,
        backend.name,
    )
    return cache


def max_num_scored(adapter: ModelAdapter) -> int:
    """How many prompt positions a step may compute the logits of, beside those of the tokens it yields."""
    return max(1, PROMPT_LOGITS_BYTES[adapter.device.type] // (adapter.vocab_size * torch.float32.itemsize))


def make_core(config: Config, source: ModelSource, channel: EngineChannel) -> EngineCore[Pending]:
    """Loads everything. Raises CannotStart."""
    adapter, card = load_model(config, source)
    max_step_tokens = config.max_num_batched_tokens or BATCHED_TOKENS[adapter.device.type]
    if max_step_tokens < config.max_num_seqs:
        raise CannotStart(
            f"--max-num-batched-tokens {max_step_tokens}: a step must hold a token of each of --max-num-seqs "
            f"{config.max_num_seqs} sequences"
        )
    cache = make_cache(config, adapter, max_step_tokens)
    grammars = Grammars(card, config.max_num_seqs)
    masks = grammars.followings
    sampler = Sampler(card.vocab_size, config.max_num_seqs, card.eos_token_ids, adapter.device, masks)
    runner = ModelRunner(adapter, cache, sampler, max_num_seqs=config.max_num_seqs, max_model_len=card.max_model_len)
    index = PrefixIndex() if config.enable_prefix_caching else None
    scheduler = Scheduler(
        pool=BlockPool(cache.num_blocks, on_evict=index.drop if index is not None else None),
        index=index,
        block_size=cache.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max_step_tokens,
        eos_token_ids=card.eos_token_ids,
        max_num_scored=max_num_scored(adapter),
    )
    limits = Limits(
        kv_tokens=cache.num_tokens,
        max_num_seqs=config.max_num_seqs,
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens or 0,
        block_size=cache.block_size,
    )
    epoch = config.epoch if config.epoch is not None else int(time.time() * 1000)
    restarts = 0 if config.first_epoch is None else max(0, epoch - config.first_epoch)
    return EngineCore(
        channel=channel,
        scheduler=scheduler,
        runner=runner,
        welcome=Welcome(PROTOCOL_VERSION, epoch, card, limits),
        stats=Stats(card.name, cache.block_size, cache.num_blocks - 1, restarts),
        clock=time.monotonic,
        step_time=_rehearse(adapter),
        grammars=grammars,
        resume_grace_s=config.resume_grace,
    )


def _rehearse(adapter: ModelAdapter) -> StepTime:
    """A first guess at what a step takes, from one that also warms up the kernels."""
    started_s = time.monotonic()
    adapter.rehearse(REHEARSAL_TOKENS, 1)
    seconds = time.monotonic() - started_s
    return StepTime(seconds, seconds / REHEARSAL_TOKENS)


def announce_ready(descriptor: int | None) -> None:
    """Tells whoever started this process, if it asked."""
    if descriptor is not None:
        os.write(descriptor, b"1")
        os.close(descriptor)
