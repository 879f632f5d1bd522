import msgspec
import pytest

from protocol.prompt_logprobs import PromptLogprob, PromptLogprobs
from tests.protocol.samples import PROMPT

ENTRIES = [PromptLogprob(-0.5, 1, (5, 6), (-0.5, -1.5)), PromptLogprob(-9.25, 7, (9,), (-0.125,))]


def test_each_position_has_its_own_token_and_the_alternatives_that_there_are() -> None:
    assert (PROMPT.count, PROMPT.end, PROMPT.numbers) == (2, 5, 12)
    assert list(PROMPT.entries(20)) == list(PROMPT.entries(2)) == ENTRIES


def test_fewer_alternatives_may_be_looked_at() -> None:
    assert list(PROMPT.entries(1)) == [PromptLogprob(-0.5, 1, (5,), (-0.5,)), ENTRIES[1]]
    assert list(PROMPT.entries(0)) == [PromptLogprob(-0.5, 1, (), ()), PromptLogprob(-9.25, 7, (), ())]


def test_the_rest_of_it_begins_where_it_is_asked_to() -> None:
    assert PROMPT.since(3) == PROMPT
    rest = PROMPT.since(4)
    assert (rest.pos, rest.end, list(rest.entries(2))) == (4, 5, ENTRIES[1:])


@pytest.mark.parametrize("field", ["logprobs", "ranks", "top_ids", "top_logprobs"])
def test_arrays_that_do_not_fit_together_are_refused(field: str) -> None:
    for changed in (b"", getattr(PROMPT, field)[:-1], getattr(PROMPT, field) + b"\0" * 8):
        fields = {**msgspec.structs.asdict(PROMPT), field: changed}
        with pytest.raises(ValueError, match="lengths"):
            PromptLogprobs(**fields)
        with pytest.raises(msgspec.ValidationError, match="lengths"):
            msgspec.convert(list(fields.values()), PromptLogprobs)
