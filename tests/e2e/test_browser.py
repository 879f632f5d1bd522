"""A real browser: an EventSource page on the GET route, with the browser's own reconnect."""

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.server import DEADLINE_S, Server, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-headless-shell")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

PAGE = """<!doctype html><title>EventSource</title><script>
const report = {tokens: [], ids: [], opened: 0};
const source = new EventSource("URL");
source.onopen = () => report.opened++;
source.onmessage = event => {
  report.ids.push(event.lastEventId);
  if (event.data === "[DONE]") report.done = true; else report.tokens.push(JSON.parse(event.data).token);
};
source.onerror = () => {  // 204 to the reconnect closes it; anything else would go on reconnecting
  if (source.readyState === EventSource.CLOSED) fetch("/report", {method: "POST", body: JSON.stringify(report)});
};
</script>"""


class Page:
    """Serves PAGE to the browser and takes its report."""

    def __init__(self) -> None:
        self.html = ""
        self.report: dict[str, Any] | None = None
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(page.html.encode())

            def do_POST(self) -> None:
                page.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(b"")

            def answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def browsing(url: str) -> Iterator[None]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                yield
            finally:
                browser.terminate()
                browser.wait(DEADLINE_S)


def test_an_event_source_page() -> None:
    page = Page()
    try:
        with Server("--cors-origins", page.origin) as server:
            query = "prompt=Once%20upon%20a%20time&max_tokens=20&temperature=0&ignore_eos=true"
            page.html = PAGE.replace("URL", f"{server.url}/v1/completions/stream?{query}")
            with browsing(page.origin):
                until(lambda: page.report is not None, 60)
            report = page.report
            assert report is not None
            expected = server.post(
                "/v1/completions",
                {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, "ignore_eos": True},
            ).json()
            assert "".join(report["tokens"]) == expected["choices"][0]["text"]
            assert report["done"] is True
            assert report["opened"] == 1
            numbers = [int(event.rpartition(".")[2]) for event in report["ids"]]
            assert numbers == sorted(numbers)  # tokens that come together may share an event
            assert (numbers[0] > 0, numbers[-1]) == (True, 20)
            made = "vllm:generation_tokens_total"
            until(lambda: server.metric(made) >= 40)  # the page's and ours
            assert server.metric(made) == 40, "the reconnect generated again"
    finally:
        page.close()
