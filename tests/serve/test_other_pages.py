"""Pages of other sites that may ask the service: named origins, and keys that everybody can read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from distilrec.errors import ConfigError, ForbiddenError, RateLimitedError
from distilrec.serve.config import ServiceConfig
from distilrec.serve.keys import Caller, KeyEntry, Keys, new_key
from tests.servers import served

ASK = """
async ([url, key, path, body]) => {
  const headers = {"content-type": "application/json"};
  if (key) headers.authorization = `Bearer ${key}`;
  try {
    const answer = await fetch(url + path, {method: "POST", headers, body: JSON.stringify(body)});
    return [answer.status, await answer.json()];
  } catch (problem) {
    return [0, problem.name];
  }
}
"""


class _Page(BaseHTTPRequestHandler):
    """A page of a shop."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>shop</title>")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(scope="module")
def shop():
    """The port of a web server with the page of a shop."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def made_key(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distilrec.cli", "key", "--name", "page", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.chromium
@pytest.mark.server
def test_a_page_with_a_public_key(bundle_copy, shop, browser):
    made = made_key("--public", "--rate", "1000")
    secret, keys = made.stderr.split()[-1], bundle_copy.parent / "public.toml"
    keys.write_text(made.stdout)
    allowed = f"http://127.0.0.1:{shop}"
    options = ("--keys", keys, "--allowed-origins", f"https://shop.example,{allowed}")
    with served(bundle_copy, *options, store="pages.db") as service:

        def ask(page, path, key=secret, **body):
            return page.evaluate(ASK, [service.url, key, path, body])

        page = browser.new_page()
        page.goto(allowed)
        status, answer = ask(page, "/v1/recommend", user_id="u3", k=3)
        assert (status, len(answer["items"])) == (200, 3)
        event = {"user_id": "visitor", "item_id": "i1", "event_id": "one"}
        assert ask(page, "/v1/events", events=[event])[1]["accepted"] == 1
        for path, key, code in (
            ("/v1/rules/load", secret, "forbidden"),
            ("/v1/recommend", None, "unauthorized"),
            ("/v1/recommend", "dr_wrong", "unauthorized"),
        ):
            assert ask(page, path, key=key, user_id="u3")[1]["error"]["code"] == code
        page.goto(f"http://localhost:{shop}")  # another origin, of the same server
        assert ask(page, "/v1/recommend", user_id="u3") == [0, "TypeError"]
        page.close()
        asked = {"origin": allowed, "access-control-request-method": "POST"}
        preflight = service.client.options("/v1/recommend", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == allowed
        refused = service.client.options(
            "/v1/recommend", headers={**asked, "origin": "https://shop.example.evil"}
        )
        assert "access-control-allow-origin" not in refused.headers
        assert "access-control-allow-credentials" not in preflight.headers


@pytest.mark.chromium
@pytest.mark.server
def test_a_named_page_may_ask_a_service_without_keys(bundle_copy, shop, browser):
    options = ("--allowed-origins", f"http://localhost:{shop}")
    with served(bundle_copy, *options, store="open-pages.db") as service:
        page = browser.new_page()
        found = []
        for name in ("localhost", "127.0.0.1"):
            page.goto(f"http://{name}:{shop}")
            asked = [service.url, None, "/v1/recommend", {"user_id": "u3"}]
            found.append(page.evaluate(ASK, asked)[0])
        page.close()
        assert found == [200, 0]
        elsewhere = {"origin": "https://shop.example"}
        response = service.client.post("/v1/recommend", json={"user_id": "u3"}, headers=elsewhere)
        assert response.json()["error"]["code"] == "origin_refused"


def test_the_rate_of_a_public_key_is_that_of_an_address():
    entry = KeyEntry("page", "00" * 32, ("recommend", "events"), rate=1.0, burst=3, public=True)
    key = Caller(entry, clock=lambda: 0.0)
    for address in ("192.0.2.1", "192.0.2.2"):
        for _ in range(3):
            key.at(address).admit("recommend")
        with pytest.raises(RateLimitedError, match="1 requests per second from an address"):
            key.at(address).admit("events")
    with pytest.raises(ForbiddenError):
        key.at("192.0.2.3").admit("admin")


def test_many_addresses_are_not_remembered(monkeypatch):
    monkeypatch.setattr("distilrec.serve.keys._ADDRESSES", 2)
    entry = KeyEntry("page", "00" * 32, ("recommend",), rate=1.0, burst=1, public=True)
    key = Caller(entry, clock=lambda: 0.0)
    for address in "abc":
        key.at(address).admit("recommend")
    for address in "bc":
        with pytest.raises(RateLimitedError):
            key.at(address).admit("recommend")
    key.at("a").admit("recommend")  # the one that asked longest ago


def test_a_secret_key_has_one_rate_for_all_addresses():
    secret, _ = new_key("server", ["recommend"], 1.0)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    keys = Keys([KeyEntry("server", digest, ("recommend",), rate=0.001, burst=1)])
    headers = {b"x-api-key": secret.encode()}
    keys.admit(headers, "recommend", "192.0.2.1")
    with pytest.raises(RateLimitedError):
        keys.admit(headers, "recommend", "192.0.2.2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--public",), "a public key has no rate"),
        (("--public", "--rate", "5", "--scopes", "recommend,users"), "has the scope 'users'"),
    ],
)
def test_what_a_public_key_cannot_be(options, words):
    made = made_key(*options)
    assert made.returncode == 2 and words in made.stderr and not made.stdout


@pytest.mark.parametrize(
    "origin", ["*", "shop.example", "https://shop.example/", "https://a.example,b", "null", ""]
)
def test_what_an_origin_cannot_be(origin):
    with pytest.raises(ConfigError, match="is not the origin of a web page"):
        ServiceConfig("bundle", allowed_origins=(origin,))
