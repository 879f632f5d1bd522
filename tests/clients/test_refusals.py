"""What each client makes of a server that is full (429) and of one that is about to end (503)."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.clients.service import KEY, MODEL, QUESTION, STORY, Service
from tests.clients.test_node import FOLDER, INSTALLED, LIMIT_S
from tests.e2e.server import until

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet when it is imported

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other people's code
HOURS: dict[str, Any] = {"prompt": [STORY] * 30, "max_tokens": 1900, "ignore_eos": True, "stream": True}


class Refusal(NamedTuple):
    service: Service
    status: int
    code: str
    again_s: str
    """Retry-After, as it is sent."""


@pytest.fixture(scope="module")
def small() -> Iterator[Service]:
    """A server with no room for a second request, which takes its time to end."""
    with Service(
        "--api-key", KEY, "--max-num-seqs", "1", "--max-queued-requests", "1", "--drain-grace", "600"
    ) as found:
        yield found


@pytest.fixture(scope="module", params=["full", "draining"])
def refusal(small: Service, request: pytest.FixtureRequest) -> Refusal:
    """Of the same server: last it is told to end."""
    if request.param == "full":
        return Refusal(small, 429, "queue_full", "1")
    small.process.terminate()
    until(lambda: small.get("/readyz").json()["draining"])
    return Refusal(small, 503, "draining", "5")


@pytest.fixture(autouse=True)
def occupied(refusal: Refusal) -> Iterator[None]:
    """By a request with more sequences than may run, of which the rest waits."""
    if refusal.status == 503:
        yield
        return
    hours = refusal.service.post("/v1/completions", HOURS, {"Authorization": f"Bearer {KEY}"})
    until(lambda: refusal.service.engine()["waiting"])
    yield
    hours.close()
    refusal.service.wait_idle()


def caught(ask: Callable[[], Any], *kinds: type[Exception]) -> Any:
    with pytest.raises(kinds) as raised:
        ask()
    return raised.value


@pytest.mark.parametrize("stream", [False, True])
def test_openai(refusal: Refusal, stream: bool) -> None:
    openai = pytest.importorskip("openai")
    kind = openai.RateLimitError if refusal.status == 429 else openai.InternalServerError
    with openai.OpenAI(base_url=refusal.service.openai_url, api_key=KEY, max_retries=0) as client:
        asks = (
            lambda: client.chat.completions.create(model=MODEL, messages=QUESTION, stream=stream),
            lambda: client.completions.create(model=MODEL, prompt=STORY, stream=stream),
            lambda: client.responses.create(model=MODEL, input=STORY, stream=stream),
        )
        for error in (caught(ask, kind) for ask in asks):
            assert (error.status_code, error.code, error.param) == (refusal.status, refusal.code, None)
            assert error.response.headers["retry-after"] == refusal.again_s


@pytest.mark.parametrize("stream", [False, True])
def test_anthropic(refusal: Refusal, stream: bool) -> None:
    anthropic = pytest.importorskip("anthropic")
    kind, told = (
        (anthropic.RateLimitError, "rate_limit_error")
        if refusal.status == 429
        else (anthropic.InternalServerError, "overloaded_error")
    )
    with anthropic.Anthropic(base_url=refusal.service.url, api_key=KEY, max_retries=0) as client:
        error = caught(
            lambda: client.messages.create(model=MODEL, max_tokens=4, messages=QUESTION, stream=stream), kind
        )
    assert (error.status_code, error.body["error"]["type"]) == (refusal.status, told)
    assert error.response.headers["retry-after"] == refusal.again_s


@pytest.mark.parametrize("streams", [False, True])
def test_langchain(refusal: Refusal, streams: bool) -> None:
    langchain = pytest.importorskip("langchain_openai")
    openai = pytest.importorskip("openai")
    model = langchain.ChatOpenAI(model=MODEL, max_retries=0, base_url=refusal.service.openai_url, api_key=KEY)
    kind = openai.RateLimitError if refusal.status == 429 else openai.InternalServerError
    error = caught(lambda: list(model.stream("Hello")) if streams else model.invoke("Hello"), kind)
    assert (error.status_code, error.code) == (refusal.status, refusal.code)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["openai", "hosted_vllm", "anthropic"])
def test_litellm(refusal: Refusal, way: str, stream: bool) -> None:
    litellm = pytest.importorskip("litellm")
    base = refusal.service.url if way == "anthropic" else refusal.service.openai_url
    options = {"model": f"{way}/{MODEL}", "api_base": base, "api_key": KEY, "max_retries": 0, "stream": stream}
    kinds = (litellm.InternalServerError, litellm.ServiceUnavailableError)  # it has both for a 503
    if refusal.status == 429:
        kinds = (litellm.RateLimitError,)
    error = caught(lambda: litellm.completion(messages=QUESTION, max_tokens=4, **options), *kinds)
    assert ("waiting" if refusal.status == 429 else "shutting down") in str(error)


@pytest.mark.skipif(not INSTALLED, reason="needs node, and `npm ci` in tests/clients/node")
def test_node(refusal: Refusal) -> None:
    told = {"STATUS": str(refusal.status), "CODE": refusal.code, "AGAIN_S": refusal.again_s}
    environ = {**os.environ, **told, "BASE_URL": refusal.service.url, "API_KEY": KEY, "MODEL": MODEL}
    command = ["node", "--test", "--test-reporter=tap", "refusals.test.mjs"]
    ran = subprocess.run(command, cwd=FOLDER, env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_websockets(refusal: Refusal) -> None:
    """One that is open is told in its own way; a server that is about to end opens no new one."""
    client = pytest.importorskip("websockets.sync.client")
    exceptions = pytest.importorskip("websockets.exceptions")
    url = f"ws://127.0.0.1:{refusal.service.port}/v1/ws?access_token={KEY}"
    if refusal.status == 503:
        assert caught(lambda: client.connect(url), exceptions.InvalidStatus).response.status_code == 503
        return
    with client.connect(url) as socket:
        socket.send(json.dumps({"type": "generate", "id": "a", "body": {"prompt": STORY}}))
        message = json.loads(socket.recv(60))
    assert (message["type"], message["id"], message["error"]["code"]) == ("error", "a", refusal.code)
