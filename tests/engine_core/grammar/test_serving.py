"""Requests with grammars, through a whole engine: what comes out, and that nobody else notices."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from protocol import messages as wire
from protocol.sampling import Grammar
from tests.engine_core.grammar.engine import EOS, Engine, Reply, choice, encode, lark, regex, schema

PERSON = schema(
    type="object",
    properties={
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
    required=["name", "age", "inner"],
    additionalProperties=False,
)


def is_person(text: str) -> bool:
    person: dict[str, Any] = json.loads(text)
    assert person.keys() >= {"name", "age", "inner"}
    assert person.keys() <= {"name", "age", "inner", "tags"}
    assert len(person["name"]) <= 8
    assert type(person["age"]) is int
    assert 0 <= person["age"] <= 120
    assert person["inner"] in ({"ok": True}, {"ok": False})
    tags = person.get("tags", [])
    return len(tags) <= 3 and all(tag in ("a", "b", None) for tag in tags)


def matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


GRAMMARS = {
    "schema": (PERSON, is_person),
    "array": (
        schema(type="array", items={"type": "integer", "minimum": -9, "maximum": 9}, minItems=2, maxItems=5),
        lambda text: 2 <= len(json.loads(text)) <= 5 and all(-9 <= item <= 9 for item in json.loads(text)),
    ),
    "regex": (regex(r"(\d{1,3}\.){3}\d{1,3}"), matches(r"(\d{1,3}\.){3}\d{1,3}")),
    "unicode": (regex("[é😀ß]{2,6}(一|二)"), matches("[é😀ß]{2,6}(一|二)")),
    "choice": (
        choice("yes", "no", "nobody", 'a "quote"', "é😀"),
        {"yes", "no", "nobody", 'a "quote"', "é😀"}.__contains__,
    ),
    "lark": (
        lark('start: pair ("," pair){0,2}\npair: KEY "=" ("(" KEY ")" | KEY)\nKEY: /[a-c]{1,4}/'),
        matches(r"[a-c]{1,4}=(\([a-c]{1,4}\)|[a-c]{1,4})(,[a-c]{1,4}=(\([a-c]{1,4}\)|[a-c]{1,4})){0,2}"),
    ),
}


@pytest.fixture(scope="module")
def engine() -> Any:
    with Engine() as engine:
        yield engine


@pytest.mark.parametrize("name", GRAMMARS)
def test_whatever_is_drawn_is_a_sentence(engine: Engine, name: str) -> None:
    grammar, is_sentence = GRAMMARS[name]
    texts = engine.sentences(grammar, 8)
    assert all(is_sentence(text) for text in texts), texts
    assert len(set(texts)) > 1, "nothing was drawn at random"


def test_a_sentence_ends_at_once_where_nothing_can_follow(engine: Engine) -> None:
    reply = engine.ask(choice("yes"))
    engine.wait(reply)
    assert (reply.text, reply.finish) == ("yes", wire.FinishReason.STOP)
    assert not set(reply.tokens) & set(EOS), "a step was spent on the end of the sequence"


def test_where_more_could_follow_the_model_ends_it(engine: Engine) -> None:
    replies = [engine.ask(regex("(ab){1,40}"), seed=seed, logit_bias=((2, 5.0),)) for seed in range(6)]
    engine.wait(*replies)
    for reply in replies:
        assert re.fullmatch("(ab){1,40}", reply.text)
        assert reply.finish is wire.FinishReason.STOP
    assert any(reply.tokens[-1] in EOS for reply in replies)


def test_max_tokens_cuts(engine: Engine) -> None:
    reply = engine.ask(regex("[ab]{300}"), max_tokens=7)
    engine.wait(reply)
    assert (len(reply.tokens), reply.finish) == (7, wire.FinishReason.LENGTH)


def test_rows_without_a_grammar_notice_nothing(engine: Engine) -> None:
    def plain(seed: int) -> Reply:
        return engine.ask(None, seed=seed, max_tokens=40, ignore_eos=True, temperature=1.0, top_p=0.9, logprobs=2)

    alone = [plain(seed) for seed in range(3)]
    engine.wait(*alone)
    together = [plain(seed) for seed in range(3)]
    held = [engine.ask(GRAMMARS[name][0], seed=1) for name in GRAMMARS]
    engine.wait(*together, *held)
    assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]


def test_a_grammar_compiled_once_serves_all_that_have_it(engine: Engine) -> None:
    grammar = schema(type="object", properties={"k": {"enum": [1, 2]}}, required=["k"], additionalProperties=False)
    engine.wait(*[engine.ask(grammar, seed=seed) for seed in range(12)])
    forked = engine.grammars.pool.processes._number
    engine.wait(*[engine.ask(grammar, seed=seed) for seed in range(12)])
    assert engine.grammars.pool.processes._number == forked


def test_preemption_changes_no_token() -> None:
    grammar = regex("[a-z]{120,140}")
    with Engine() as roomy:
        expected = [roomy.ask(grammar, seed=seed) for seed in range(6)]
        roomy.wait(*expected)
    with Engine(num_blocks=10) as tight:  # 144 tokens
        replies = [tight.ask(grammar, seed=seed) for seed in range(6)]
        tight.wait(*replies)
        assert tight.scheduler.counters.preemptions > 0
    assert [reply.tokens for reply in replies] == [reply.tokens for reply in expected]


@pytest.mark.parametrize("overlap", [0, 2])
def test_a_replay_goes_on_where_the_output_was(overlap: int) -> None:
    with Engine(overlap=overlap) as engine:
        for name in ("schema", "regex", "unicode"):
            grammar, is_sentence = GRAMMARS[name]
            whole = engine.ask(grammar, seed=5)
            engine.wait(whole)
            assert is_sentence(whole.text), name
            cuts = sorted({1, len(whole.tokens) // 2, len(whole.tokens) - 1})
            rests = [engine.ask(grammar, seed=5, out=tuple(whole.tokens[:cut])) for cut in cuts]
            engine.wait(*rests)
            for cut, rest in zip(cuts, rests, strict=True):
                assert whole.tokens[:cut] + rest.tokens == whole.tokens, name
                assert rest.finish is whole.finish


def test_a_replay_of_a_whole_sentence_ends_at_once(engine: Engine) -> None:
    reply = engine.ask(choice("yes"), out=tuple(encode("yes")))
    engine.wait(reply)
    assert (reply.tokens, reply.finish) == ([], wire.FinishReason.STOP)


def test_a_replay_of_something_else_fails(engine: Engine) -> None:
    reply = engine.ask(choice("yes"), out=tuple(encode("nonsense")))
    engine.wait(reply)
    assert reply.failed is not None
    assert reply.failed.code == "invalid_request_error"
    assert "can't be followed" in reply.failed.message


# ------------------------------------------------------------------------------------- beside other limits on tokens


def test_min_tokens_is_kept_where_the_grammar_lets_it_be(engine: Engine) -> None:
    texts = engine.sentences(regex("(ab)+"), 6, min_tokens=20, max_tokens=30, logit_bias=((2, 100.0), (0, 100.0)))
    assert all(re.fullmatch("(ab)+", text) for text in texts)
    [short] = engine.sentences(choice("yes"), 1, min_tokens=20)
    assert short == "yes"


def test_ignore_eos_goes_on_while_the_grammar_can(engine: Engine) -> None:
    reply = engine.ask(regex("[ab]{1,30}"), ignore_eos=True, logit_bias=((2, 100.0), (0, 100.0)))
    engine.wait(reply)
    assert (len(reply.text), reply.finish) == (30, wire.FinishReason.STOP)


def test_a_stop_token_may_end_a_sentence(engine: Engine) -> None:
    [stop] = encode("!")
    reply = engine.ask(regex("a{3,50}"), stop_token_ids=(stop,), logit_bias=((stop, 100.0),))
    engine.wait(reply)
    assert re.fullmatch("a{3,50}!", reply.text)
    assert reply.tokens[-1] == stop


def test_allowed_ids_and_bad_words_take_from_what_the_grammar_allows(engine: Engine) -> None:
    [a], [b] = encode("a"), encode("b")
    texts = engine.sentences(regex("[abc]{4}"), 4, allowed_token_ids=(a, b), bad_words=((b,),))
    assert set(texts) == {"aaaa"}


def test_where_nothing_is_left_the_request_ends_or_fails(engine: Engine) -> None:
    [a], [b] = encode("a"), encode("b")
    ends = engine.ask(regex("a?b?"), allowed_token_ids=(a,))
    fails = engine.ask(regex("ab"), allowed_token_ids=(a,))
    fails_at_once = engine.ask(regex("a"), bad_words=((a,),), allowed_token_ids=(a, b))
    engine.wait(ends, fails, fails_at_once)
    assert ends.finish is wire.FinishReason.STOP
    assert ends.text in ("", "a")
    for reply in (fails, fails_at_once):
        assert reply.text in ("", "a")
        assert reply.failed is not None
        assert reply.failed.code == "invalid_request_error"


def test_bias_does_not_break_a_grammar(engine: Engine) -> None:
    texts = engine.sentences(regex("[ab]{5}"), 3, logit_bias=tuple((token, 100.0) for token in range(1000)))
    assert all(re.fullmatch("[ab]{5}", text) for text in texts)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_penalties_and_truncation_stay_inside(engine: Engine, temperature: float) -> None:
    texts = engine.sentences(
        PERSON, 3, temperature=temperature, top_k=3, top_p=0.5, repetition_penalty=1.8, frequency_penalty=2.0
    )
    assert all(is_person(text) for text in texts)


def test_the_engine_refuses_in_the_clients_words(engine: Engine) -> None:
    reply = engine.ask(Grammar(regex("(").kind, "(", "response_format"))
    engine.wait(reply)
    assert isinstance(reply.answer, wire.Rejected)
    assert (reply.answer.code, reply.answer.param) == ("invalid_request_error", "response_format")
    assert "unclosed group" in reply.answer.message
