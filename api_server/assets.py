"""What is served to browsers: packaged files and made documents, packed once, with the headers that let a browser keep
them and let a page load nothing from anywhere else."""

import asyncio
import gzip
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

FOLDER: Final = Path(__file__).parent / "static"
# By path. These are all files there are: a name that is not here is not looked for.
FILES: Final = {
    "/docs": "docs/index.html",
    "/docs/start.js": "docs/start.js",
    "/docs/page.css": "docs/page.css",
    "/docs/swagger-ui-bundle.js": "docs/swagger-ui-bundle.js.gz",
    "/docs/swagger-ui.css": "docs/swagger-ui.css.gz",
}
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
# A page runs its own scripts and talks to its own server.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Cache-Control": "no-cache",  # kept, and asked for again: names carry no version
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}
_NONE_OF_IT: Final = ("q=0", "q=0.0", "q=0.00", "q=0.000")


class Asset(NamedTuple):
    """Content as gzip; `tag` names it."""

    packed: bytes
    media_type: str
    tag: str


def pack(content: bytes, media_type: str) -> Asset:
    """An asset that was just made."""
    return _tagged(gzip.compress(content, mtime=0), media_type)


@cache
def load(path: str) -> Asset:
    """The packaged file behind a path of FILES."""
    file = FOLDER / FILES[path]
    if file.suffix == ".gz":
        return _tagged(file.read_bytes(), MEDIA_TYPES[Path(file.stem).suffix])
    return pack(file.read_bytes(), MEDIA_TYPES[file.suffix])


async def answer(request: Request, asset: Callable[[], Asset]) -> Response:
    """The asset as the client can read it, or 304 if it has it. Files and (un)packing stay off the event loop."""
    return await asyncio.to_thread(lambda: _answer(request.headers, asset()))


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding lets gzip in, by name or as part of everything."""
    accepted = {}
    for element in header.lower().split(","):
        coding, _, weight = element.replace(" ", "").partition(";")
        accepted[coding] = weight not in _NONE_OF_IT
    return accepted.get("gzip", accepted.get("*", False))


def _answer(headers: Headers, asset: Asset) -> Response:
    packed = accepts_gzip(headers.get("accept-encoding", ""))
    tag = f'"{asset.tag}-gzip"' if packed else f'"{asset.tag}"'
    told = HEADERS | {"ETag": tag}
    if _has(headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=told)
    if packed:
        return Response(asset.packed, headers=told | {"Content-Encoding": "gzip"}, media_type=asset.media_type)
    return Response(gzip.decompress(asset.packed), headers=told, media_type=asset.media_type)


def _has(header: str, tag: str) -> bool:
    """Whether an If-None-Match names the tag, a weak one just as well."""
    held = {element.strip().removeprefix("W/") for element in header.split(",")}
    return tag in held or "*" in held


def _tagged(packed: bytes, media_type: str) -> Asset:
    return Asset(packed, media_type, blake2b(packed, digest_size=12).hexdigest())
