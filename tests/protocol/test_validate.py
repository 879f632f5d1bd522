from typing import Any

import msgspec
import pytest

from protocol import messages as wire
from protocol.sampling import MAX_GRAMMAR_SIZE, Grammar, GrammarKind, SamplingParams
from protocol.tokens import TOKEN_BYTES, pack, unpack
from protocol.validate import InvalidRequest
from protocol.validate import check as check_with
from tests.protocol.samples import CARD, LIMITS


def request(**changes: Any) -> wire.Generate:
    sampling = changes.pop("sampling", {})
    plain = wire.Generate(
        1, "r", [pack([1, 2, 3])], [wire.Sequence(0, 0)], SamplingParams(**{"max_tokens": 8, **sampling}), 0
    )
    return msgspec.structs.replace(plain, **changes)


def check(request: wire.Generate, card: wire.ModelCard, limits: wire.Limits) -> None:
    highest = [max(unpack(prompt[: len(prompt) // TOKEN_BYTES * TOKEN_BYTES])) for prompt in request.prompts]
    check_with(request, card, limits, highest)


def test_a_plain_request_passes() -> None:
    check(request(), CARD, LIMITS)


def test_prompt_and_output_fill_the_context_exactly() -> None:
    check(request(prompts=[pack([1] * 2000)], sampling={"max_tokens": 48}), CARD, LIMITS)
    with pytest.raises(InvalidRequest) as caught:
        check(request(prompts=[pack([1] * 2000)], sampling={"max_tokens": 49}), CARD, LIMITS)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


def test_what_never_fits_the_cache_is_refused() -> None:
    small = msgspec.structs.replace(LIMITS, kv_tokens=40)  # two blocks of 16: 32 tokens, and one that is never fed back
    check(request(prompts=[pack([1] * 25)]), CARD, small)
    with pytest.raises(InvalidRequest, match="33 tokens"):
        check(request(prompts=[pack([1] * 26)]), CARD, small)


def test_a_grammar_may_be_as_large_as_the_limit() -> None:
    check(request(sampling={"grammar": Grammar(GrammarKind.REGEX, "é" * (MAX_GRAMMAR_SIZE // 2))}), CARD, LIMITS)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompts": [pack([1, 100])]}, "prompt"),
        ({"prompts": [pack([1, 2])[:-1]]}, "prompt"),
        ({"prompts": [pack([1] * 3000)]}, "prompt"),
        ({"sequences": [wire.Sequence(0, 1)]}, "prompt"),
        ({"sequences": [wire.Sequence(0, 0), wire.Sequence(0, 0, 1)]}, "n"),
        ({"sequences": [wire.Sequence(0, 0, 0, [1] * 8)]}, "max_tokens"),
        ({"sequences": [wire.Sequence(0, 0, 0, [100])]}, "prompt"),
        ({"sampling": {"min_tokens": 9}}, "min_tokens"),
        ({"sampling": {"stop_token_ids": (100,)}}, "stop_token_ids"),
        ({"sampling": {"logit_bias": ((100, 1.0),)}}, "logit_bias"),
        ({"sampling": {"allowed_token_ids": (1, 100)}}, "allowed_token_ids"),
        ({"sampling": {"allowed_token_ids": ()}}, "allowed_token_ids"),
        ({"sampling": {"bad_words": ((1, 100),)}}, "bad_words"),
        ({"sampling": {"bad_words": ((),)}}, "bad_words"),
        ({"sampling": {"grammar": Grammar(GrammarKind.REGEX, "é" * 40_000)}}, "structured_outputs"),
        ({"sampling": {"grammar": Grammar(GrammarKind.REGEX, "é" * 40_000, "tools")}}, "tools"),
        ({"sampling": {"grammar": Grammar(GrammarKind.REGEX, "\ud800")}}, "structured_outputs"),
        ({"sequences": [wire.Sequence(i, 0, i) for i in range(40)], "sampling": {"max_tokens": 2000}}, "max_tokens"),
        (
            {
                "prompts": [pack([1] * 2000)],
                "sequences": [wire.Sequence(i, 0, i) for i in range(100)],
                "sampling": {"prompt_logprobs": 20},
            },
            "prompt_logprobs",
        ),
    ],
)
def test_each_mistake_names_its_field(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(request(**changes), CARD, LIMITS)
    assert caught.value.param == param
