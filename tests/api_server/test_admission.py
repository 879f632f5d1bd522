import asyncio
import json
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from api_server.admission import Admission
from api_server.encode import INLINE_CHARS
from api_server.errors import ApiError
from api_server.job import Job
from api_server.schema.decode import decode
from api_server.schema.requests import ChatRequest, CompletionRequest, PlainRequest, TokenizeRequest
from protocol.messages import Limits, SamplingDefaults
from protocol.sampling import SamplingParams
from tests.api_server.vocabularies import LIMITS, byte_level, card

T = TypeVar("T")
TOKENIZER = byte_level()
ADMISSION = Admission(card(TOKENIZER), LIMITS)
BOS = TOKENIZER.token_to_id("<|bos|>")
MESSAGES = [{"role": "user", "content": "Hello"}]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def request(fields: dict[str, object], kind: type[T]) -> T:
    return decode(json.dumps(fields).encode(), kind)


def chat(admission: Admission = ADMISSION, **fields: object) -> Job:
    return run(admission.chat(request({"messages": MESSAGES, **fields}, ChatRequest)))


def completion(admission: Admission = ADMISSION, **fields: object) -> Job:
    return run(admission.completion(request({"prompt": "Hello", **fields}, CompletionRequest)))


def generate(admission: Admission = ADMISSION, **fields: object) -> Job:
    return run(admission.generate(request({"prompt": "Hello", **fields}, PlainRequest)))


def stream(admission: Admission = ADMISSION, **fields: object) -> Job:
    return run(admission.stream(request({"prompt": "Hello", **fields}, PlainRequest)))


def tokenize(**fields: object) -> list[int]:
    return run(ADMISSION.tokenize(request(fields, TokenizeRequest)))


def refused(admit: Any, *args: object, **fields: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admit(*args, **fields)
    return caught.value


def test_ids_are_the_servers_own() -> None:
    for admit, prefix in ((chat, "chatcmpl-"), (completion, "cmpl-"), (generate, "gen-"), (stream, "cmpl-")):
        rids = {admit().submission.rid for _ in range(3)}
        assert len(rids) == 3
        assert all(re.fullmatch(prefix + "[0-9a-f]{32}", rid) for rid in rids)


def test_seeds_are_drawn_unless_given() -> None:
    assert chat(seed=7).submission.seed == 7
    assert chat(seed=0).submission.seed == 0
    assert chat().submission.seed != chat().submission.seed


def test_a_missing_max_tokens_is_the_routes_own() -> None:
    room = 256 - len(chat().submission.prompts[0])
    assert chat().submission.sampling.max_tokens == room
    assert completion().submission.sampling.max_tokens == 16
    assert generate().submission.sampling.max_tokens == 128
    assert stream().submission.sampling.max_tokens == 256 - len(stream().submission.prompts[0])
    large = Admission(card(TOKENIZER, max_model_len=100_000), Limits(200_000, 1, 1, 0))
    assert stream(large).submission.sampling.max_tokens == 256


def test_a_missing_max_tokens_is_cut_to_the_room_left() -> None:
    assert completion(prompt=[5] * 250).submission.sampling.max_tokens == 6
    assert completion(prompt=[[5] * 250, [5]]).submission.sampling.max_tokens == 6
    small_cache = Admission(card(TOKENIZER), Limits(100, 1, 1, 0))  # six whole blocks, and the token that needs none
    assert chat(small_cache).submission.sampling.max_tokens == 97 - len(chat().submission.prompts[0])


def test_a_missing_max_tokens_leaves_the_sum_within_its_limit() -> None:
    large = Admission(card(TOKENIZER, max_model_len=100_000), Limits(200_000, 1, 1, 0))
    assert chat(large).submission.sampling.max_tokens == 65_536
    assert chat(large, n=8).submission.sampling.max_tokens == 65_536 // 8


def test_an_explicit_max_tokens_that_does_not_fit_is_refused() -> None:
    error = refused(completion, max_tokens=256)
    assert (error.code, error.param) == ("context_length_exceeded", "max_tokens")
    assert refused(chat, max_completion_tokens=256).param == "max_completion_tokens"
    assert refused(completion, max_tokens=9000, n=8).param == "max_tokens"


def test_max_completion_tokens_goes_before_max_tokens() -> None:
    assert chat(max_tokens=3, max_completion_tokens=5).submission.sampling.max_tokens == 5
    assert chat(max_tokens=3).submission.sampling.max_tokens == 3


def test_a_prompt_without_room_names_the_prompt() -> None:
    assert refused(completion, prompt=[5] * 256).param == "prompt"
    error = refused(chat, messages=[{"role": "user", "content": "Hello " * 300}])
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    error = refused(completion, prompt="x" * (ADMISSION.encoder.max_chars + 1))
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")
    assert "characters" in error.message


def test_texts_get_the_tokenizers_special_tokens_and_chats_their_templates_alone() -> None:
    assert completion().submission.prompts[0][0] == BOS
    prompt = chat().submission.prompts[0]
    assert prompt.count(BOS) == 1
    assert TOKENIZER.decode(prompt, skip_special_tokens=False) == "<|bos|><|user|>Hello<|end|><|assistant|>"


def test_long_texts_are_tokenised_the_same_off_the_loop() -> None:
    large = Admission(card(TOKENIZER, max_model_len=100_000), Limits(200_000, 1, 1, 0))
    text = "Hello world " * (INLINE_CHARS // 8)
    assert completion(large, prompt=text).submission.prompts[0] == TOKENIZER.encode(text).ids
    assert len(chat(large, messages=[{"role": "user", "content": text}]).submission.prompts[0]) > INLINE_CHARS // 8


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("Hello", 1), (["Hello", "world"], 2), ([5, 6], 1), ([[5], [6, 7]], 2)],
)
def test_prompts_in_all_four_forms(prompt: object, count: int) -> None:
    assert len(completion(prompt=prompt).submission.prompts) == count


@pytest.mark.parametrize("prompt", [["a", 5], [[5], 5], ["a", [5]], [[]], [[5], []]])
def test_mixed_and_empty_prompts(prompt: object) -> None:
    assert refused(completion, prompt=prompt).param == "prompt"


def test_an_empty_text_is_no_prompt_where_the_tokenizer_adds_nothing() -> None:
    plain = byte_level()
    plain.post_processor = None  # type: ignore[assignment]
    assert refused(completion, Admission(card(plain), LIMITS), prompt="").param == "prompt"
    assert completion(prompt="").submission.prompts == [[BOS]]


def test_prompts_times_n_has_a_limit() -> None:
    assert len(completion(prompt=[[5]] * 64, n=8, max_tokens=1).submission.prompts) == 64
    assert refused(completion, prompt=[[5]] * 65, n=8, max_tokens=1).param == "n"
    assert refused(completion, prompt=[[5]] * 513, max_tokens=1).param == "prompt"


def test_ids_must_be_in_the_vocabulary() -> None:
    assert refused(completion, prompt=[512]).param == "prompt"
    assert refused(completion, stop_token_ids=[512]).param == "stop_token_ids"
    assert refused(completion, logit_bias={"512": 1}).param == "logit_bias"
    assert refused(completion, allowed_token_ids=[512]).param == "allowed_token_ids"


def test_min_tokens_beyond_max_tokens() -> None:
    assert refused(completion, min_tokens=5, max_tokens=4).param == "min_tokens"


def test_the_models_name() -> None:
    for name in (None, "", "tiny"):
        assert chat(model=name).model == "tiny"
    error = refused(chat, model="other")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_parameters_reach_the_engine() -> None:
    sampling = completion(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=-0.4, min_tokens=2, max_tokens=9, ignore_eos=True, stop_token_ids=[3, 4],
        logit_bias={"5": -100, "6": 2.5}, allowed_token_ids=[5, 6, 7], logprobs=3,
    ).submission.sampling  # fmt: skip
    assert sampling == SamplingParams(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=-0.4, min_tokens=2, ignore_eos=True, stop_token_ids=(3, 4),
        logit_bias=((5, -100.0), (6, 2.5)), allowed_token_ids=(5, 6, 7), logprobs=3,
    )  # fmt: skip


def test_what_a_request_leaves_out_is_the_models_recommendation() -> None:
    recommends = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.1)
    admission = Admission(card(TOKENIZER, defaults=recommends), LIMITS)
    sampling = chat(admission).submission.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.95, 20, 0.05)
    assert sampling.repetition_penalty == 1.1
    own = chat(admission, temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1).submission.sampling
    assert (own.temperature, own.top_p, own.top_k, own.min_p, own.repetition_penalty) == (0.0, 1.0, 0, 0.0, 1.0)
    assert generate(admission).submission.sampling.temperature == 0.7
    assert stream(admission).submission.sampling.temperature == 0.6


@pytest.mark.parametrize("top_k", [0, -1])
def test_both_ways_to_switch_top_k_off(top_k: int) -> None:
    assert completion(top_k=top_k).submission.sampling.top_k == 0


def test_a_temperature_too_small_to_divide_by() -> None:
    assert completion(temperature=1e-300).submission.sampling.temperature == 0.01
    assert completion(temperature=0).submission.sampling.greedy


def test_logprobs_in_both_forms() -> None:
    assert chat().submission.sampling.logprobs is None
    assert chat(logprobs=False).submission.sampling.logprobs is None
    assert chat(logprobs=True).submission.sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).submission.sampling.logprobs == 4
    assert completion(logprobs=0).submission.sampling.logprobs == 0
    assert refused(chat, top_logprobs=4).param == "top_logprobs"


def test_bad_words_as_they_are_spelt_at_a_start_and_after_a_space() -> None:
    words = completion(bad_words=["Hello"]).submission.sampling.bad_words
    assert {TOKENIZER.decode(list(word)) for word in words} == {"Hello", " Hello"}


def test_a_bad_word_may_begin_with_a_new_line() -> None:
    words = completion(bad_words=["\n", "\n Hello", "  the"]).submission.sampling.bad_words
    assert {TOKENIZER.decode(list(word)) for word in words} == {"\n", " \n", "\n Hello", " \n Hello", "the", " the"}


def test_salt_and_priority() -> None:
    job = chat(cache_salt="äb", priority=-3)
    assert job.submission.priority == -3
    longest = [chat(cache_salt=first + "ä" * 127).submission.salt for first in "ab"]
    salts = [job.submission.salt, *longest]
    assert len(set(salts)) == 3
    assert all(0 < len(salt) <= 64 for salt in salts), "the wire takes no more"
    assert chat(cache_salt="äb").submission.salt == salts[0]
    assert chat().submission.salt == b""


def test_stop_as_string_and_as_list() -> None:
    assert chat(stop="a").stop == ("a",)
    assert chat(stop=["a", "b"]).stop == ("a", "b")
    assert chat(stop=[]).stop == ()
    assert chat().stop == ()


def test_how_the_answer_is_to_look() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    job = chat(stream=True, stream_options=options, return_token_ids=True, skip_special_tokens=False, timeout=3)
    assert (job.stream, job.include_usage, job.continuous_usage, job.return_token_ids) == (True, True, True, True)
    assert (job.skip_special_tokens, job.timeout_s) == (False, 3.0)
    assert not chat(stream=True, stream_options={"continuous_usage_stats": True}).continuous_usage
    assert (chat().stream, completion().stream, generate().stream, stream().stream) == (False, False, False, True)


def test_stream_options_are_for_streams() -> None:
    assert refused(chat, stream_options={"include_usage": True}).param == "stream_options"
    assert refused(chat, stream=False, stream_options={}).param == "stream_options"


def test_echo_repeats_the_prompt_as_text() -> None:
    assert completion(prompt=["Hello", "world"], echo=True).echo == ("Hello", "world")
    assert completion(prompt=TOKENIZER.encode("the end", add_special_tokens=False).ids, echo=True).echo == ("the end",)
    last = {"role": "assistant", "content": "Once"}
    continued = chat(messages=[*MESSAGES, last], echo=True, continue_final_message=True)
    assert continued.echo == ("Once",)
    refusal = {"role": "assistant", "content": None, "refusal": "I can't"}
    assert chat(messages=[*MESSAGES, refusal], echo=True, continue_final_message=True).echo == ("I can't",)
    assert chat(echo=True).echo is None


def test_opening_and_continuing_exclude_each_other() -> None:
    last = {"role": "assistant", "content": "Once"}
    job = chat(messages=[*MESSAGES, last], continue_final_message=True)
    assert TOKENIZER.decode(job.submission.prompts[0]).endswith("Once")
    assert refused(chat, add_generation_prompt=True, continue_final_message=True).status == 400
    closed = chat(add_generation_prompt=False).submission.prompts[0]
    assert TOKENIZER.decode(closed, skip_special_tokens=False).endswith("<|end|>")


def test_requests_bring_no_template() -> None:
    error = refused(chat, chat_template="{{ 1 }}")
    assert (error.status, error.param) == (400, "chat_template")
    assert chat(chat_template=None).model == "tiny"


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("echo", True), ("logprobs", 0), ("logprobs", 2), ("logprobs", True), ("prompt_logprobs", 0)],
)
@pytest.mark.parametrize("admit", [generate, stream])
def test_the_plain_routes_refuse_what_their_events_have_no_room_for(admit: Any, field: str, value: object) -> None:
    error = refused(admit, **{field: value})
    assert (error.code, error.param) == ("unsupported_parameter", field)


@pytest.mark.parametrize("option", ["include_usage", "continuous_usage_stats"])
@pytest.mark.parametrize("admit", [generate, stream])
def test_the_plain_routes_have_no_usage_in_their_streams(admit: Any, option: str) -> None:
    error = refused(admit, stream=True, stream_options={option: True})
    assert (error.code, error.param) == ("unsupported_parameter", "stream_options")
    assert admit(stream=True, stream_options={option: False}).stream


def test_token_ids_are_refused_where_there_are_none() -> None:
    error = refused(stream, return_token_ids=True)
    assert (error.code, error.param) == ("unsupported_parameter", "return_token_ids")
    assert stream(return_token_ids=False).stream
    assert generate(return_token_ids=True).model == "tiny"


def test_suffix_is_refused_by_name() -> None:
    assert refused(completion, suffix="x").param == "suffix"
    assert completion(suffix="").model == "tiny"


def test_a_model_without_a_template_has_no_chat() -> None:
    admission = Admission(card(TOKENIZER, chat_template=None), LIMITS)
    assert "no chat template" in refused(chat, admission).message
    assert completion(admission).model == "tiny"


def test_a_template_that_does_not_compile_closes_chat_alone(caplog: pytest.LogCaptureFixture) -> None:
    admission = Admission(card(TOKENIZER, chat_template="{% if %}"), LIMITS)
    assert "does not compile" in caplog.text
    assert "no chat template" in refused(chat, admission).message
    assert completion(admission).model == "tiny"


def test_a_model_without_a_tokenizer_takes_ids_alone() -> None:
    admission = Admission(card(None), LIMITS)
    assert completion(admission, prompt=[5, 6]).submission.prompts == [[5, 6]]
    assert generate(admission, prompt=[5]).submission.prompts == [[5]]
    assert refused(completion, admission).param == "prompt"
    assert refused(generate, admission).status == 400


def test_more_messages_than_tokens() -> None:
    assert refused(chat, messages=MESSAGES * 257).code == "context_length_exceeded"


def test_the_fingerprint_is_the_models() -> None:
    assert chat().fingerprint == completion().fingerprint
    other = Admission(card(TOKENIZER, name="other"), LIMITS)
    assert chat(other).fingerprint != chat().fingerprint


def test_tokenize_a_prompt_or_messages() -> None:
    assert tokenize(prompt="Hello") == completion().submission.prompts[0]
    assert tokenize(prompt="Hello", add_special_tokens=False) == completion().submission.prompts[0][1:]
    assert tokenize(messages=MESSAGES) == chat().submission.prompts[0]
    assert len(tokenize(messages=MESSAGES, add_generation_prompt=False)) == len(chat().submission.prompts[0]) - 1


def test_tokenize_refusals() -> None:
    assert refused(tokenize).param == "prompt"
    assert refused(tokenize, prompt="x", messages=MESSAGES).status == 400
    assert refused(tokenize, prompt="x", model="other").status == 404
    assert refused(tokenize, messages=MESSAGES, chat_template="x").param == "chat_template"


def test_decode_and_spell() -> None:
    tokens = tokenize(prompt="Hello é")
    assert ADMISSION.decode(tokens) == "<|bos|>Hello é"
    assert ADMISSION.spell([BOS, 511]) == ["<|bos|>", ""]
