"""The pages for browsers: what is served, how it is kept, and that nothing else in the folder, or outside, is."""

import gzip
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from api_server import assets
from api_server.auth import PUBLIC_PATHS
from tests.api_server.test_endpoints import App, Reply

OWN = {"index.html", "start.js", "page.css"}


@pytest.fixture
def app() -> App:
    return App()


def body(reply: Reply) -> bytes:
    return gzip.decompress(reply.body) if reply.headers.get("content-encoding") == "gzip" else reply.body


@pytest.mark.parametrize("path", [*assets.FILES, "/openapi.json"])
def test_every_asset_is_the_same_packed_and_plain(app: App, path: str) -> None:
    plain = app("GET", path)
    packed = app("GET", path, accept_encoding="br, gzip;q=0.8")
    assert (plain.status, packed.status) == (200, 200)
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert plain.headers["content-type"] == packed.headers["content-type"]
    assert plain.headers["etag"] != packed.headers["etag"]
    assert plain.headers["vary"] == "Accept-Encoding"
    assert "'unsafe" not in plain.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui-bundle.js", "/openapi.json"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_what_a_browser_has_is_not_sent_again(app: App, path: str, encoding: str) -> None:
    tag = app("GET", path, accept_encoding=encoding).headers["etag"]
    for held in (tag, f'"other", W/{tag}', "*"):
        again = app("GET", path, accept_encoding=encoding, if_none_match=held)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["etag"] == tag
        assert "content-length" not in again.headers
    assert app("GET", path, accept_encoding=encoding, if_none_match='"other"').status == 200


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("br, gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity", False),
        ("xgzip", False),
    ],
)
def test_gzip_goes_to_those_who_take_it(header: str, accepted: bool) -> None:
    assert assets.accepts_gzip(header) is accepted


@pytest.mark.parametrize(
    "path",
    [
        "/docs/", "/docs/index.html", "/docs/LICENSE", "/docs/README.md", "/docs/swagger-ui.css.gz", "/docs/%2e%2e",
        "/docs/../assets.py", "/docs/..", "/static/docs/index.html", "/docs/docs/index.html", "/docs//etc/passwd",
    ],
)  # fmt: skip
def test_only_listed_names_are_files(app: App, path: str) -> None:
    reply = app("GET", path)
    assert reply.status == 404
    assert reply.json()["error"]["code"] == "not_found"


def test_pages_need_no_key_and_nothing_beside_them_is_open() -> None:
    locked = App(api_keys=("secret",))
    assert all(locked("GET", path).status == 200 for path in (*assets.FILES, "/openapi.json"))
    assert {path for path in PUBLIC_PATHS if path.startswith("/docs")} == assets.FILES.keys()
    assert locked("GET", "/docs/LICENSE").status == 401
    assert b'"bearer"' in locked("GET", "/openapi.json").body
    assert locked("POST", "/docs").status == 405


def test_the_document_is_made_once(app: App) -> None:
    app("GET", "/openapi.json")
    document = app.app.state.document
    assert document.asset is document.asset
    assert body(app("GET", "/openapi.json")) == gzip.decompress(document.asset.packed)


def test_what_comes_from_elsewhere_is_unchanged_and_has_its_licence() -> None:
    folder = assets.FOLDER / "docs"
    sums = dict(re.findall(r"^    ([0-9a-f]{64})  (\S+)$", (folder / "README.md").read_text(), re.MULTILINE))
    vendored = {name: digest for digest, name in sums.items()}
    for name, digest in vendored.items():
        assert sha256(gzip.decompress((folder / f"{name}.gz").read_bytes())).hexdigest() == digest
    served = {Path(file).name for file in assets.FILES.values()}
    assert served == OWN | {f"{name}.gz" for name in vendored}
    licences = {"LICENSE", "NOTICE", "README.md", "swagger-ui-bundle.js.LICENSE.txt"}
    assert {file.name for file in folder.iterdir()} == served | licences
    assert "Apache License" in (folder / "LICENSE").read_text()


class Links(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [link for name in ("src", "href") if (link := values.get(name))]
        self.inline |= (tag == "script" and "src" not in values) or tag == "style"
        self.inline |= any(name == "style" or name.startswith("on") for name in values)


def test_the_page_loads_what_is_here_and_nothing_else() -> None:
    page = Links((assets.FOLDER / assets.FILES["/docs"]).read_text())
    assert not page.inline
    relative = {link for link in page.found if not link.startswith("data:")}
    assert {f"/{link}" for link in relative} == set(assets.FILES) - {"/docs"} | {"/openapi.json"}
    scripts = (assets.FOLDER / assets.FILES["/docs/start.js"]).read_text()
    assert "//" not in re.sub(r"^\s*//.*$|;? //.*$|, // .*$", "", scripts, flags=re.MULTILINE)
