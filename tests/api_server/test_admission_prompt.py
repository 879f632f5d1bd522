"""What a request asks for when it wants its prompt's log probabilities."""

from api_server.admission import Admission
from protocol.messages import Limits
from tests.api_server.test_admission import MESSAGES, TOKENIZER, chat, completion, generate, refused, stream
from tests.api_server.vocabularies import card


def test_log_probabilities_of_the_prompt_are_asked_for_by_name_or_with_an_echo() -> None:
    plain = completion(logprobs=3)
    assert (plain.submission.sampling.prompt_logprobs, plain.prompt_logprobs, plain.echo_offsets) == (None, None, None)
    assert completion(echo=True).submission.sampling.prompt_logprobs is None
    for asked, told in ((None, 3), (0, 3), (5, 5)):
        echoed = completion(prompt="the end", echo=True, logprobs=3, prompt_logprobs=asked)
        assert (echoed.submission.sampling.prompt_logprobs, echoed.prompt_logprobs) == (told, asked)
        assert echoed.submission.sampling.logprobs == 3
        assert echoed.echo_offsets is not None
        assert list(map(len, echoed.echo_offsets)) == list(map(len, echoed.submission.prompts))
    assert completion(echo=True, logprobs=0).submission.sampling.prompt_logprobs == 0
    talk = chat(prompt_logprobs=4, logprobs=True, top_logprobs=2)
    assert (talk.submission.sampling.prompt_logprobs, talk.prompt_logprobs) == (4, 4)
    last = {"role": "assistant", "content": "Once"}
    continued = chat(messages=[*MESSAGES, last], echo=True, logprobs=True, continue_final_message=True)
    assert continued.submission.sampling.prompt_logprobs is None, "a chat's echo is text alone"


def test_log_probabilities_of_all_prompts_have_a_limit() -> None:
    long = Admission(card(TOKENIZER, max_model_len=100_000), Limits(10**6, 64, 64, 0))
    prompt = [5] * 60_000
    assert completion(long, prompt=[prompt] * 3, prompt_logprobs=20).prompt_logprobs == 20
    error = refused(completion, long, prompt=[prompt] * 2, n=2, prompt_logprobs=20)
    assert (error.status, error.param) == (400, "prompt_logprobs")
    assert refused(completion, long, prompt=[prompt] * 4, echo=True, logprobs=20).param == "logprobs"


def test_max_tokens_0_is_for_an_echo() -> None:
    job = completion(echo=True, max_tokens=0)
    assert (job.submission.sampling.max_tokens, job.prompt_only) == (1, True)
    assert not completion(echo=True).prompt_only
    assert refused(completion, max_tokens=0).param == "max_tokens"
    for admit in (chat, generate, stream):
        assert refused(admit, max_tokens=0).param == "max_tokens"
