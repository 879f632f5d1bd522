"""/docs in a real browser, which reaches this server and nothing else: it renders, takes a key, and sends requests."""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.server import DEADLINE_S, Server, until
from tests.e2e.test_browser import CHROMIUM, FLAGS

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

KEY = "sk-of-the-docs"
MODELS = "#operations-Models-list_models"
LOCAL_ONLY = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Tab:
    """A browser's tab over the DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._calls = 0
        self._events: list[dict[str, Any]] = []
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._connection.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(DEADLINE_S))
            if message.get("id") == self._calls:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._events.append(message)

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, selector: str) -> None:
        until(lambda: self.run(f"document.querySelector({json.dumps(selector)}) !== null"), 60)

    def click(self, selector: str) -> None:
        self.wait(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, text: str) -> None:
        self.wait(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def text(self, selector: str) -> str:
        found: str = self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    @property
    def requests(self) -> list[str]:
        sent = [event["params"]["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [url for url in sent if not url.startswith("data:")]

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, and what the browser or the page wrote to the console."""
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event for method in methods for event in self.events(method)]

    def events(self, method: str) -> list[dict[str, Any]]:
        self.call("Runtime.getIsolateId")  # whatever came before its answer is here then
        return [event for event in self._events if event["method"] == method]


@contextmanager
def tab() -> Iterator[Tab]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = (*FLAGS, LOCAL_ONLY, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank")
        with subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                told = Path(profile, "DevToolsActivePort")
                until(lambda: told.exists() and told.read_text().count("\n") > 0, 60)
                port = told.read_text().split("\n")[0]
                with urlopen(f"http://127.0.0.1:{port}/json", timeout=DEADLINE_S) as answer:
                    [page] = [target for target in json.load(answer) if target["type"] == "page"]
                with connect(page["webSocketDebuggerUrl"], max_size=None) as connection:
                    yield Tab(connection)
            finally:
                browser.terminate()
                browser.wait(DEADLINE_S)


def test_the_page_works_without_the_internet_and_with_a_key() -> None:
    with Server("--api-key", KEY) as server, tab() as page:
        page.call("Page.navigate", url=f"{server.url}/docs")
        page.wait(MODELS)
        paths = server.get("/openapi.json").json()["paths"]
        shown = page.run("document.querySelectorAll('.opblock').length")
        assert shown == sum(map(len, paths.values()))
        page.click(f"{MODELS} .opblock-summary-control")
        page.click(f"{MODELS} .try-out__btn")

        page.click(f"{MODELS} .execute")
        page.wait(f"{MODELS} .live-responses-table")
        assert page.text(f"{MODELS} .live-responses-table .response .response-col_status").split()[0] == "401"
        page.click(f"{MODELS} .btn-clear")

        page.click(".auth-wrapper .authorize")
        page.fill("#auth-bearer-value", KEY)
        page.click(".auth-container:has(#auth-bearer-value) .authorize")
        page.click(".btn-done")
        page.click(f"{MODELS} .execute")
        page.wait(f"{MODELS} .live-responses-table")
        answer = page.text(f"{MODELS} .live-responses-table")
        assert page.text(f"{MODELS} .live-responses-table .response .response-col_status").split()[0] == "200"
        assert "tokenwire-tiny" in answer

        assert {url for url in page.requests if not url.startswith(f"{server.url}/")} == set()
        complaints = page.complaints
        assert len(complaints) == 1, complaints
        assert "401" in complaints[0]["params"]["entry"]["text"]
