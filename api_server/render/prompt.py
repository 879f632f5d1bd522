"""What is told of a prompt's tokens: their log probabilities as vLLM tells them (`prompt_logprobs`), and the echoed
prompt as the beginning of a completion's own.

Both are made a slice at a time: streamed, each slice is a chunk; in one body, it is a part of a list.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from api_server.detokenize import Vocabulary
from api_server.job import Job
from api_server.render import logprobs as own
from api_server.render.logprobs import name, named_tops, reported
from api_server.render.long import LongLists, elements
from api_server.schema.responses import CompletionLogprobs, PromptTokenLogprob
from api_server.text import Piece
from protocol.prompt_logprobs import PromptLogprobs


class Slice(NamedTuple):
    """Positions `start` … `stop` of prompt number `prompt`. Position 0 belongs to the first slice, and has no log
    probability."""

    prompt: int
    start: int
    stop: int
    portion: PromptLogprobs | None  # of the others


def slices(job: Job, prompt: int, portions: Sequence[PromptLogprobs]) -> list[Slice]:
    """The slices of portions that follow each other; a prompt of one token has no portion, and one slice."""
    if len(job.submission.prompts[prompt]) == 1:
        return [Slice(prompt, 0, 1, None)]
    return [Slice(prompt, 0 if portion.pos == 1 else portion.pos, portion.end, portion) for portion in portions]


# ------------------------------------------------------------------------------------------------ vLLM's shape


def prompt_logprobs(job: Job, part: Slice) -> list[dict[str, PromptTokenLogprob] | None]:
    """One entry per position: by token id, the prompt's token first and then the likeliest ones."""
    entries: list[dict[str, PromptTokenLogprob] | None] = [None] if part.start == 0 else []
    if part.portion is not None and job.prompt_logprobs is not None:
        vocabulary, tokens = job.vocabulary, job.submission.prompts[part.prompt]
        for position, entry in enumerate(part.portion.entries(job.prompt_logprobs), part.portion.pos):
            token = tokens[position]
            own = PromptTokenLogprob(reported(entry.logprob), entry.rank, name(vocabulary, token))
            entries.append({str(token): own} | _alternatives(vocabulary, token, entry.top_ids, entry.top_logprobs))
    return entries


def _alternatives(
    vocabulary: Vocabulary, token: int, ids: Sequence[int], logprobs: Sequence[float]
) -> dict[str, PromptTokenLogprob]:
    """All but the token itself. Equally likely ones share a rank."""
    found = {}
    rank, last = 0, 0.0
    for place, (alternative, logprob) in enumerate(zip(ids, logprobs, strict=True), 1):
        if not rank or logprob != last:
            rank, last = place, logprob
        if alternative != token:
            found[str(alternative)] = PromptTokenLogprob(reported(logprob), rank, name(vocabulary, alternative))
    return found


def long_prompt_logprobs(job: Job, parts: Sequence[Slice]) -> Iterator[bytes]:
    """The elements of the whole list, slice by slice."""
    return (elements(prompt_logprobs(job, part)) for part in parts)


# ------------------------------------------------------------------------------------------------ the echo


def echo_text(job: Job, part: Slice) -> str:
    """The text of a slice of a prompt that is echoed with log probabilities."""
    assert job.echo is not None
    assert job.echo_offsets is not None
    text, offsets = job.echo[part.prompt], job.echo_offsets[part.prompt]
    end = len(text) if part.stop >= len(offsets) else offsets[part.stop]
    return text[offsets[part.start] if part.start else 0 : end]


def echo_logprobs(job: Job, part: Slice) -> CompletionLogprobs:
    return CompletionLogprobs(_offsets(job, part), _logprobs(job, part), _names(job, part), _tops(job, part))


def long_logprobs(
    job: Job, parts: Sequence[Slice], piece: Piece, base: int, lists: LongLists
) -> CompletionLogprobs | None:
    """Those of an echoed prompt, if there are `parts` of it, and of the output behind it, for a body made of `lists`.
    None if no log probabilities were asked for."""
    if piece.logprobs is None:
        return None

    def column(prompt: Iterator[object], output: Iterator[object]) -> Any:
        return lists.add(map(elements, chain(prompt, output)))

    return CompletionLogprobs(
        column((_offsets(job, part) for part in parts), (own.offsets(span, base) for span in own.spans(piece))),
        column((_logprobs(job, part) for part in parts), map(own.likelihoods, own.spans(piece))),
        column((_names(job, part) for part in parts), (own.names(span, job.vocabulary) for span in own.spans(piece))),
        column((_tops(job, part) for part in parts), (own.tops(span, job.vocabulary) for span in own.spans(piece))),
    )


def _offsets(job: Job, part: Slice) -> list[int]:
    assert job.echo_offsets is not None
    return list(job.echo_offsets[part.prompt][part.start : part.stop])


def _names(job: Job, part: Slice) -> list[str]:
    tokens = job.submission.prompts[part.prompt]
    return [name(job.vocabulary, token) for token in tokens[part.start : part.stop]]


def _logprobs(job: Job, part: Slice) -> list[float | None]:
    found: list[float | None] = [None] if part.start == 0 else []
    if part.portion is not None:
        found += [reported(entry.logprob) for entry in part.portion.entries(0)]
    return found


def _tops(job: Job, part: Slice) -> list[dict[str, float] | None]:
    found: list[dict[str, float] | None] = [None] if part.start == 0 else []
    if part.portion is not None:
        tokens = job.submission.prompts[part.prompt]
        entries = part.portion.entries(job.submission.sampling.logprobs or 0)
        for position, entry in enumerate(entries, part.portion.pos):
            tops = named_tops(job.vocabulary, tokens[position], entry.logprob, entry.top_ids, entry.top_logprobs)
            found.append(tops)
    return found
