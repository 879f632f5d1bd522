"""Log probabilities of prompts as evaluation harnesses ask for them, against transformers on the same weights."""

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import openai
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from engine_core.tiny import MODEL_PATH
from tests.e2e.server import Server

TOLERANCE = 1e-4  # of float32, over a few dozen tokens
CONTEXTS = ("The capital of France is", "What is continuous batching?", "Once upon a time there was a")
CONTINUATIONS = (" Paris.", " It runs many requests in one batch.", " small cat called Tom.")
MESSAGES = [{"role": "user", "content": "What is a token? Größe 漢字 🎉"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """In float32, as the reference."""
    with Server("--dtype", "float32", "--max-num-batched-tokens", "300") as running:
        yield running


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))


@cache
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_PATH, dtype=torch.float32)


def encode(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def reference(tokens: Sequence[int]) -> torch.Tensor:
    """Log probabilities [T, V] of what follows each token."""
    with torch.inference_mode():
        logits: torch.Tensor = model()(input_ids=torch.tensor([list(tokens)])).logits[0]
    return logits.log_softmax(-1)


def loglikelihoods(outputs: Any, context_lengths: Sequence[int]) -> list[tuple[float, bool]]:
    """What lm-evaluation-harness makes of a response: the continuation's log probability, and whether it is the
    greedy one. The last token of each list is the one that was generated."""
    found = []
    for choice, length in zip(sorted(outputs["choices"], key=lambda each: each["index"]), context_lengths, strict=True):
        own = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        found.append((sum(own), all(logprob == max(top.values()) for logprob, top in zip(own, tops, strict=True))))
    return found


def greedy_continuation(context: Sequence[int], count: int) -> list[int]:
    tokens = list(context)
    for _ in range(count):
        tokens.append(int(reference(tokens)[-1].argmax()))
    return tokens[len(context) :]


def test_loglikelihoods_as_an_evaluation_harness_asks_for_them(server: Server) -> None:
    contexts = [encode(context) for context in CONTEXTS]
    continuations = [encode(continuation) for continuation in CONTINUATIONS]
    contexts.append(contexts[0])
    continuations.append(greedy_continuation(contexts[0], 5))
    prompts = [context + continuation for context, continuation in zip(contexts, continuations, strict=True)]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    outputs = server.post("/v1/completions", body).json()

    expected = []
    for context, prompt in zip(contexts, prompts, strict=True):
        rows = reference(prompt)[len(context) - 1 : -1]
        targets = prompt[len(context) :]
        likelihood = rows[range(len(targets)), targets].sum().item()
        expected.append((likelihood, rows.argmax(-1).tolist() == targets))
    found = loglikelihoods(outputs, list(map(len, contexts)))
    assert [likelihood for likelihood, _ in found] == pytest.approx([one for one, _ in expected], abs=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] == [False, False, False, True]
    assert outputs["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_prompt_logprobs_of_a_chat_streamed_and_not(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "temperature": 0, "prompt_logprobs": 2, "return_token_ids": True}
    whole = server.post("/v1/chat/completions", body).json()
    prompt, entries = whole["prompt_token_ids"], whole["prompt_logprobs"]
    assert entries[0] is None
    assert len(entries) == len(prompt)
    for row, token, entry in zip(reference(prompt), prompt[1:], entries[1:], strict=False):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(row[token].item(), abs=TOLERANCE)
        assert own["rank"] == (row > row[token]).sum() + 1
        assert own["decoded_token"] == tokenizer().decode([token], skip_special_tokens=False)
        best = row.topk(2).indices.tolist()
        assert set(entry) == {str(token), *map(str, best)}
        assert [entry[str(alternative)]["rank"] for alternative in best] == [1, 2]

    streamed = server.post("/v1/chat/completions", {**body, "stream": True}).events()
    told = [event for event in streamed if "prompt_logprobs" in event]
    assert told[0] is streamed[0]
    assert [entry for event in told for entry in event["prompt_logprobs"]] == entries


def test_an_echo_is_scored_the_same_streamed_and_not_and_for_each_choice(server: Server) -> None:
    text = "Grüße 漢字 🎉, and  two   spaces"
    body = {"prompt": [text, "Hi"], "n": 2, "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 2}
    whole = server.post("/v1/completions", body).json()["choices"]
    assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
    assert whole[0]["text"] == whole[1]["text"]
    for choice, prompt in zip(whole, (text, text, "Hi", "Hi"), strict=True):
        logprobs = choice["logprobs"]
        assert choice["text"].startswith(prompt)
        assert {len(values) for values in logprobs.values()} == {len(encode(prompt)) + 4}
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        assert logprobs["text_offset"][0] == 0
        for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
            assert "\ufffd" in token or choice["text"].startswith(token, offset)
    streamed: dict[int, dict[str, Any]] = {}
    for event in server.post("/v1/completions", {**body, "stream": True}).events():
        (part,) = event["choices"]
        joined = streamed.setdefault(part["index"], {"text": "", "text_offset": [], "tokens": []})
        joined["text"] += part["text"]
        for name, values in part["logprobs"].items():
            joined.setdefault(name, []).extend(values)
    for choice in whole:
        assert streamed[choice["index"]] == {"text": choice["text"], **choice["logprobs"]}


def test_nothing_but_the_echo(server: Server) -> None:
    tokens = encode("The capital of France is Paris.")
    body = {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 0}
    whole = server.post("/v1/completions", body).json()
    (choice,) = whole["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("The capital of France is Paris.", "length")
    rows = reference(tokens)
    expected = [rows[at, token].item() for at, token in enumerate(tokens[1:])]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=TOLERANCE)
    assert whole["usage"]["completion_tokens"] == 0
    streamed = server.post("/v1/completions", {**body, "stream": True}).events()
    assert "".join(event["choices"][0]["text"] for event in streamed) == choice["text"]
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"
    refused = server.post("/v1/completions", {**body, "echo": False})
    assert (refused.status, refused.json()["error"]["param"]) == (400, "max_tokens")


def test_the_longest_prompt_with_all_alternatives_holds_up_nobody(server: Server) -> None:
    story = {"prompt": "Once upon a time", "max_tokens": 250, "temperature": 0, "ignore_eos": True}
    quiet = server.post("/v1/completions", story).json()["choices"][0]["text"]
    epoch = server.engine()["epoch"]
    window = server.get("/v1/models").json()["data"][0]["max_model_len"]
    prompt = [3 + (at * 7) % 2000 for at in range(window - 1)]
    told: list[Any] = []

    def score() -> None:
        body = {"prompt": prompt, "max_tokens": 1, "prompt_logprobs": 20, "echo": True, "logprobs": 20}
        answer = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        answer.request("POST", "/v1/completions", json.dumps(body))
        told.append(json.loads(answer.getresponse().read()))
        answer.close()

    stream = server.post("/v1/completions", {**story, "stream": True, "return_token_ids": True})
    scoring = threading.Thread(target=score)
    text, beside = "", 0
    for data in stream.data():
        if data == "[DONE]":
            break
        (choice,) = json.loads(data)["choices"]
        if scoring.ident is None:
            scoring.start()
        text += choice["text"]
        beside += len(choice["token_ids"]) if not told else 0
    scoring.join()
    assert text == quiet
    assert beside >= window // 300, "a step that scores had no room for the others"
    (choice,) = told[0]["choices"]
    assert len(choice["prompt_logprobs"]) == len(choice["logprobs"]["tokens"]) - 1 == len(prompt)
    assert {len(entry) for entry in choice["prompt_logprobs"][1:]} <= {20, 21}
    assert server.engine()["epoch"] == epoch


def test_openai_s_client_reads_an_echo_with_its_nulls(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
    completion = client.completions.create(
        model="tokenwire-tiny", prompt="Hello world", max_tokens=2, echo=True, logprobs=1, temperature=0
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.token_logprobs) == len(encode("Hello world")) + 2
