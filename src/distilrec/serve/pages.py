"""The pages of the service, playground and console, and the script for pages of others, with their
security headers.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePosixPath

from distilrec.serve.http import Call, Endpoint, Reply

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPT = "/distilrec.js"
# Pages of others fetch it with every view: a browser may use what it has for an hour
_KEPT = (b"cache-control", b"public, max-age=3600")
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_MODULES = (
    "charts",
    "console",
    "experiments",
    "figures",
    "lookup",
    "metrics",
    "model",
    "numbers",
    "outcomes",
    "panels",
)
PAGES = {
    "/": "playground/index.html",
    "/playground.js": "playground/playground.js",
    "/playground.svg": "playground/playground.svg",
    "/playground.css": "playground/playground.css",
    _SCRIPT: "script/distilrec.js",
    "/look/look.css": "look/look.css",
    "/look/page.js": "look/page.js",
    "/console": "console/index.html",
    "/console/console.css": "console/console.css",
    **{f"/console/{module}.js": f"console/{module}.js" for module in _MODULES},
}


def endpoints() -> list[Endpoint]:
    """Return the endpoints of the pages."""
    folder = files("distilrec.serve")

    def endpoint(path: str, file: str) -> Endpoint:
        headers = [(b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer")]
        if path == _SCRIPT:
            headers.append(_KEPT)
        content = (folder / file).read_bytes()
        reply = Reply(content, _TYPES[PurePosixPath(file).suffix], headers)

        async def handle(call: Call) -> Reply:
            return reply

        name = "console" if file.startswith("console/") else "playground"
        return Endpoint("GET", path, name, f"The {name}.", None, None, None, handle)

    return [endpoint(path, file) for path, file in PAGES.items()]
