"""An endpoint is the types of its body and answer, and one row in the module of its subject."""

from __future__ import annotations

import asyncio
import hashlib

import httpx
import msgspec
import pytest

from distilrec import load
from distilrec.serve import items
from distilrec.serve.app import make_app
from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Endpoint
from distilrec.serve.keys import KeyEntry, Keys
from distilrec.serve.service import open_service

pytestmark = pytest.mark.slow


class TitlesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of the added endpoint."""

    item_ids: list[str]


class TitlesResponse(msgspec.Struct, frozen=True):
    """Its answer."""

    titles: list[str]


@pytest.fixture
def row(monkeypatch):
    """The row that adds the endpoint."""
    others = items.endpoints

    def endpoints(library):
        async def titles(call):
            found = [await library.get(item_id) for item_id in call.body.item_ids]
            return TitlesResponse([item.title for item in found])

        return [
            *others(library),
            Endpoint(
                "POST", "/v1/titles", "titles", "The titles of several items.", "recommend",
                TitlesRequest, TitlesResponse, titles,
            ),
        ]  # fmt: skip

    monkeypatch.setattr(items, "endpoints", endpoints)


def key(name, scope):
    return KeyEntry(name, hashlib.sha256(name.encode()).hexdigest(), (scope,))


def test_the_row_is_answered_guarded_measured_and_described(bundle, row):
    keys = Keys((key("reader", "recommend"), key("writer", "events"), key("watcher", "metrics")))

    async def ask():
        service = open_service(ServiceConfig(str(bundle), store=f"sqlite:///{bundle}.db"))
        await service.start()
        transport = httpx.ASGITransport(make_app(service, keys))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            try:
                return [
                    await client.request(
                        method, path, json=body, headers={"authorization": f"Bearer {secret}"}
                    )
                    for method, path, body, secret in (
                        ("POST", "/v1/titles", {"item_ids": ["i1", "i2"]}, "reader"),
                        ("POST", "/v1/titles", {"item_ids": ["i1"]}, "writer"),
                        ("POST", "/v1/titles", {"items": ["i1"]}, "reader"),
                        ("POST", "/v1/titles", {"item_ids": ["nothing"]}, "reader"),
                        ("GET", "/v1/titles", None, "reader"),
                        ("GET", "/openapi.json", None, "reader"),
                        ("GET", "/metrics", None, "watcher"),
                    )
                ]
            finally:
                await service.stop()

    answer, scope, field, unknown, method, described, measured = asyncio.run(ask())
    assert answer.status_code == 200
    assert answer.json() == {"titles": [load(bundle).title(item) for item in ("i1", "i2")]}
    assert [scope.status_code, field.status_code, unknown.status_code] == [403, 422, 404]
    assert "lacks the scope 'recommend'" in scope.json()["error"]["message"]
    assert method.status_code == 405
    operation = described.json()["paths"]["/v1/titles"]["post"]
    assert operation["summary"].startswith("The titles of several items.")
    assert "TitlesRequest" in str(operation["requestBody"])
    assert "TitlesResponse" in str(operation["responses"]["200"])
    assert 'endpoint="titles"' in measured.text
