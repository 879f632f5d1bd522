"""nginx and HAProxy in front of real frontends and a real engine core, whose device alone is made up."""

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine_core.batch import Batch
from engine_core.request import Request
from engine_core.scheduler import Sampled
from tests.api_server.sockets import SocketClient, chunks
from tests.api_server.vocabularies import byte_level, card
from tests.chaos.line import Line, Reply
from tests.deploy.proxies import PROXIES, Haproxy, Proxy
from tests.e2e.server import DEADLINE_S, Frontends, alive, descendants, until
from tests.fakes import MadeUpDevice, MadeUpEngine

TOKENS = 60
BODY = {"prompt": "Hello world", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
COMPLETIONS = "/v1/completions"


def letter(request: Request) -> int:
    """Tokens that are text at once."""
    return 40 + request.out_len % 20


class Rationed(MadeUpDevice):
    """Makes a step only for each ration while it is `scarce`."""

    def __init__(self) -> None:
        super().__init__(letter, step_s=0.005)
        self.scarce = False
        self.rations = threading.Semaphore(0)

    def collect(self, pending: Batch) -> list[Sampled]:
        if self.scarce:
            self.rations.acquire(timeout=DEADLINE_S)
        return super().collect(pending)


class Site:
    """The engine and two addresses that serve it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.endpoint = f"ipc://{folder}/e.sock"
        self.device = Rationed()
        self.engine = stack.enter_context(
            MadeUpEngine(self.endpoint, device=self.device, card=card(byte_level(), max_model_len=8192))
        )
        self.first = stack.enter_context(Frontends("--engine", self.endpoint, "--api-workers", "2"))
        self.second = stack.enter_context(Frontends("--engine", self.endpoint))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path_factory.mktemp("site"), stack)


@pytest.fixture(params=PROXIES, ids=lambda kind: kind.program)
def kind(request: pytest.FixtureRequest) -> type[Proxy]:
    kind: type[Proxy] = request.param
    if not kind.installed():
        pytest.skip(f"{kind.program} is not installed")
    return kind


@pytest.fixture
def proxy(kind: type[Proxy], site: Site, tmp_path: Path) -> Iterator[Proxy]:
    """In front of the first address."""
    with kind(tmp_path / "proxy", site.first.port) as running:
        yield running


def idle(site: Site) -> bool:
    return not site.engine.scheduler.running and not site.engine.scheduler.waiting


def test_a_stream_arrives_token_by_token(proxy: Proxy, site: Site) -> None:
    until(lambda: idle(site))
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
    site.device.rations = threading.Semaphore(0)
    site.device.scarce = True
    try:
        connection.request("POST", COMPLETIONS, json.dumps({**BODY, "max_tokens": 6}))
        response = connection.getresponse()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        for _ in range(6):  # none is made before the one before it is here
            site.device.rations.release()
            event = response.readline()
            assert json.loads(event.removeprefix(b"data: "))["choices"][0]["text"]
            assert response.readline() == b"\n"
        assert response.read().endswith(b"data: [DONE]\n\n")
    finally:
        site.device.scarce = False
        site.device.rations.release()
        connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_gone_behind_the_proxy_too(proxy: Proxy, site: Site, stream: bool) -> None:
    until(lambda: idle(site))
    steps = site.device.steps
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
    connection.request("POST", COMPLETIONS, json.dumps({**BODY, "max_tokens": 4000, "stream": stream}))
    until(lambda: bool(site.engine.scheduler.running))
    connection.close()
    until(lambda: idle(site))
    assert site.device.steps - steps < 4000


def test_sockets_pass(proxy: Proxy) -> None:
    with SocketClient(proxy.port) as client:
        for name in ("a", "b"):
            client.generate(name, prompt="Hello world", max_tokens=6, ignore_eos=True)
            assert chunks(client.until_end(name)[name])


def test_keys_in_a_query_are_not_logged(proxy: Proxy) -> None:
    line = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
    line.request("GET", "/v1/completions/stream?access_token=hush&prompt=hush&max_tokens=3")
    assert line.getresponse().read()
    line.close()
    until(lambda: any("/v1/completions/stream" in entry for entry in proxy.accesses()))
    assert not any("hush" in path.read_text() for path in proxy.folder.iterdir() if path.is_file())


# ---------------------------------------------------------------------------------------------------- rolls


def whole(reply: Reply) -> None:
    assert reply.status == 200, reply.body
    last = reply.events()[-1]
    assert last["choices"][0]["finish_reason"] == "length"


async def roll(proxy: Proxy, server: Frontends, times: int) -> int:
    """Rolls under streams and short requests, of which none may fail. Returns how many streams there were."""
    streams, stopping = 0, False

    async def stream(*, keep: bool) -> None:
        nonlocal streams
        with Line(proxy.port) as line:
            while not stopping:
                whole(await line.post(COMPLETIONS, BODY))
                streams += 1
                if not keep:
                    line.close()

    async def ask() -> None:
        with Line(proxy.port) as line:
            while not stopping:
                assert (await line.get("/v1/models")).status == 200

    async with asyncio.TaskGroup() as group:
        for number in range(16):
            group.create_task(stream(keep=number % 2 == 0))
        group.create_task(ask())
        begun = server.log().count("rolled: all")
        for number in range(begun + 1, begun + times + 1):
            server.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(120):
                while server.log().count("rolled: all") < number:
                    await asyncio.sleep(0.02)
        stopping = True
    return streams


def test_a_roll_behind_it_cuts_nothing(proxy: Proxy, site: Site) -> None:
    before = descendants(site.first.process.pid)
    assert asyncio.run(roll(proxy, site.first, 2)) >= 16
    assert not set(before) & set(descendants(site.first.process.pid))
    assert "given up" not in site.first.log()


# ---------------------------------------------------------------------------------------------------- deaths


def listens(port: int) -> bool:
    """Threads that are just ending keep a socket for a moment longer than it seems."""
    try:
        socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()
    except OSError:
        return False
    return True


def kill(server: Frontends) -> None:
    """Without a word. Returns when nothing of it is left."""
    pids = descendants(server.process.pid)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not any(alive(pid) for pid in pids) and not listens(server.port))


async def ask(proxy: Proxy, times: int) -> None:
    """Requests one after the other, none of which may fail; the first can be repeated without harm."""
    for number in range(times):
        with Line(proxy.port) as line:
            if number:
                whole(await line.post(COMPLETIONS, {**BODY, "max_tokens": 2}))
            else:
                assert (await line.get("/v1/models")).status == 200


def test_a_dead_server_is_taken_out_and_comes_back(kind: type[Proxy], site: Site, tmp_path: Path) -> None:
    with (
        Frontends("--engine", site.endpoint) as doomed,
        kind(tmp_path / "proxy", doomed.port, site.second.port) as proxy,
    ):
        asyncio.run(ask(proxy, 10))
        until(lambda: len(proxy.tried()) == 10)
        assert {port for ports in proxy.tried() for port in ports} == {doomed.port, site.second.port}
        kill(doomed)
        began_s = time.monotonic()
        asyncio.run(ask(proxy, 30))
        until(lambda: len(proxy.tried()) == 40)
        if isinstance(proxy, Haproxy):  # it asks for itself
            until(lambda: not proxy.up(doomed.port))
            asyncio.run(ask(proxy, 10))
            until(lambda: len(proxy.tried()) == 50)
            assert proxy.tried()[40:] == [[site.second.port]] * 10
        else:
            tried = [doomed.port in ports for ports in proxy.tried()[10:]]
            assert any(tried)
            assert sum(tried) <= 2 + (time.monotonic() - began_s) / 5  # half of them, if it were not left alone
        revived = Frontends("--engine", site.endpoint)
        revived.port = doomed.port
        with revived:
            until(lambda: (asyncio.run(ask(proxy, 1)), proxy.tried()[-1:] == [[doomed.port]])[1])


def test_a_server_that_is_not_ready_gets_nothing_from_haproxy(site: Site, tmp_path: Path) -> None:
    if not Haproxy.installed():
        pytest.skip("haproxy is not installed")
    with (
        Frontends("--engine", f"ipc://{tmp_path}/none.sock", ready=False) as unready,
        Haproxy(tmp_path / "proxy", unready.port, site.second.port) as proxy,
    ):
        until(lambda: not proxy.up(unready.port))
        asyncio.run(ask(proxy, 10))
        until(lambda: len(proxy.tried()) == 10)
        assert proxy.tried() == [[site.second.port]] * 10
