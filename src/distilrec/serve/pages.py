"""The pages of the playground and the script for pages of others, with their security headers."""

from __future__ import annotations

from importlib.resources import files

from distilrec.serve.http import Call, Endpoint, Reply

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = {
    "/": ("playground/index.html", b"text/html; charset=utf-8"),
    "/playground.js": ("playground/playground.js", b"text/javascript; charset=utf-8"),
    "/playground.svg": ("playground/playground.svg", b"image/svg+xml"),
    "/playground.css": ("playground/playground.css", b"text/css; charset=utf-8"),
    "/distilrec.js": ("script/distilrec.js", b"text/javascript; charset=utf-8"),
}


def endpoints() -> list[Endpoint]:
    """Return the endpoints of the pages."""
    folder = files("distilrec.serve")

    def page(file: str, media_type: bytes) -> Reply:
        headers = [(b"content-security-policy", _POLICY), (b"referrer-policy", b"no-referrer")]
        return Reply((folder / file).read_bytes(), media_type, headers)

    def endpoint(path: str, reply: Reply) -> Endpoint:
        async def handle(call: Call) -> Reply:
            return reply

        return Endpoint("GET", path, "playground", "The playground.", None, None, None, handle)

    return [endpoint(path, page(*what)) for path, what in PAGES.items()]
