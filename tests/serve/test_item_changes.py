"""A change of an item is checked, stored and applied, or none of these; and what is stored already blocks nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from distilrec import load
from distilrec.engine.filters import Filter
from distilrec.engine.stored import StoredRecommender
from distilrec.errors import ConfigError
from distilrec.stores.opening import open_store
from distilrec.stores.records import ItemRecord
from tests.servers import Server

pytestmark = pytest.mark.server

WRONG = [
    {"features": {"price": "12"}},
    {"features": {"price": True}},
    {"features": {"nothing": 1}},
    {"attributes": {"price": ["1"]}},
    {"attributes": {"price": "cheap"}},
    {"attributes": {"shelf": [str(n) for n in range(1_001)]}},
    {"attributes": {"shelf": "x" * 1_025}},
    {"attributes": {f"a{n}": 1 for n in range(257)}},
    {"attributes": {f"a{n}": "x" for n in range(90_000)}},
    {"attributes": {"x" * 129: 1}},
    {"attributes": {"": 1}},
    {"features": {"title": "word " * 14_000}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_change_changes_nothing(bundle, tmp_path, wrong):
    opened = StoredRecommender(load(bundle), open_store(f"sqlite:///{tmp_path / 'p.db'}"))
    for item in ("i1", "new"):
        with pytest.raises(ConfigError):
            opened.put_item(ItemRecord(item, "Title", **wrong, available=False))
    assert not opened.recommender.knows_item("new") and opened.recommender.item("i1").available
    assert opened.store.items() == ([], 0)
    opened.store.close()


def test_a_wrong_change_over_http(bundle, tmp_path, request):
    store = f"sqlite:///{tmp_path / 's.db'}"
    server = Server(bundle, store, "--max-body", 4_000_000)
    request.addfinalizer(server.stop)
    for wrong in WRONG:
        response = server.client.put("/v1/items/i1", json={"available": False, **wrong})
        assert (response.status_code, response.json()["error"]["code"]) == (
            422,
            "config_invalid",
        ), response.text
        assert server.client.put("/v1/items/new", json=wrong).status_code == 422
    assert server.client.get("/v1/items/i1").json()["available"] is True
    assert server.client.get("/v1/items/new").status_code == 404
    assert server.client.put("/v1/items/i1", json={"available": False}).json()["available"] is False
    assert server.items("nobody", filter={"allow": ["i1"]}) == []
    assert server.client.delete("/v1/items/i1").status_code == 200
    assert server.client.get("/v1/items/i1").status_code == 404


def test_only_so_many_attributes_of_a_catalogue(bundle):
    recommender = load(bundle)
    for part in range(4):
        recommender.put_item(ItemRecord("i1", attributes={f"a{part}-{n}": 1.0 for n in range(240)}))
    with pytest.raises(ConfigError, match="more than 1,000 attributes"):
        recommender.put_item(ItemRecord("i1", attributes={f"b{n}": 1.0 for n in range(100)}))
    recommender.put_item(ItemRecord("i1", attributes={"a1-1": 2.0}))


@pytest.fixture
def old_store(bundle, tmp_path):
    """A store as earlier versions left it: records whose values no model takes, or that are too large."""
    path = tmp_path / "old.db"
    opened = StoredRecommender(load(bundle), open_store(f"sqlite:///{path}"))
    for item in ("i1", "i2", "new"):
        opened.put_item(ItemRecord(item, "Old", {"price": 3.0}))
    opened.store.close()
    with sqlite3.connect(path) as db:
        for item, wrong in (
            ("i1", {"features": {"price": "1977", "genres": ["g1"]}, "available": False}),
            ("i2", {"attributes": {f"a{n}": "x" for n in range(90_000)}, "title": "Large"}),
            (
                "new",
                {
                    "features": {"colour": "red", "price": 2.0},
                    "attributes": {"price": "x", "shelf": "top"},
                },
            ),
        ):
            (record,) = db.execute("SELECT record FROM items WHERE item_id = ?", (item,)).fetchone()
            changed = json.dumps({**json.loads(record), **wrong}).encode()
            db.execute("UPDATE items SET record = ? WHERE item_id = ?", (changed, item))
    db.close()
    return path


def test_a_store_with_wrong_values_is_opened_and_the_rest_applied(bundle, old_store, caplog):
    opened = StoredRecommender(load(bundle), open_store(f"sqlite:///{old_store}"))
    recommender = opened.recommender
    assert recommender.item("i1").available is False and recommender.item("i1").attributes[
        "genres"
    ] == ["g1"]
    assert recommender.title("i2") == "Large" and len(recommender.attributes) < 300
    new = recommender.item("new")
    assert new.attributes == {"price": 2.0, "shelf": ["top"]}
    assert "item 'i1': left out" in caplog.text and "item 'new': left out" in caplog.text
    opened.put_item(ItemRecord("i1", features={"price": 19.0}))
    assert recommender.item("i1").available is False
    opened.put_item(ItemRecord("i1", available=True))
    assert recommender.item("i1").available and recommender.item("i1").attributes["price"] == 19.0
    assert [item.item_id for item in opened.recommend("nobody", where=Filter(allow=("i1",)))] == [
        "i1"
    ]
    opened.put_item(ItemRecord("new", removed=True, available=False))
    assert not recommender.knows_item("new")
    opened.store.close()
    again = StoredRecommender(load(bundle), open_store(f"sqlite:///{old_store}"))
    assert again.recommender.item("i1").attributes[
        "price"
    ] == 19.0 and not again.recommender.knows_item("new")
    again.store.close()


def test_the_service_and_the_doctor_say_what_is_left_out(bundle, old_store, request):
    command = [sys.executable, "-m", "distilrec.cli", "doctor", "--bundle", bundle, "--port", "0"]
    run = subprocess.run(
        [*command, "--store", f"sqlite:///{old_store}"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert (
        "warning  items:" in run.stdout
        and "'price' is numeric, but the value is text" in run.stdout
    )
    server = Server(bundle, f"sqlite:///{old_store}")
    request.addfinalizer(server.stop)
    left_out = [
        json.loads(line) for line in server.log.read_text().splitlines() if "left out" in line
    ]
    assert {line["item_id"] for line in left_out} == {"i1", "i2", "new"}
    assert server.client.get("/v1/items/i1").json()["available"] is False
    assert (
        server.client.put("/v1/items/i1", json={"features": {"price": 19}}).json()["attributes"][
            "price"
        ]
        == 19.0
    )
    assert server.items("nobody", filter={"allow": ["i1"]}) == []
    server.client.put("/v1/items/i1", json={"available": True})
    assert server.items("nobody", filter={"allow": ["i1"]}) == ["i1"]


def test_what_a_change_does_not_name_stays(bundle, tmp_path, request):
    """An item of the bundle and a new one: title, features, availability; also after a restart."""
    store = f"sqlite:///{tmp_path / 's.db'}"
    server = Server(bundle, store)
    request.addfinalizer(server.stop)

    def said(item, **change):
        return server.client.put(f"/v1/items/{item}", json=change).json()["available"]

    for item in ("i1", "new"):
        assert said(item) is True
        assert said(item, available=False, title="Sold out") is False
        assert said(item, attributes={"shelf": "top"}) is False
    server.stop()
    server = Server(bundle, store)
    request.addfinalizer(server.stop)
    for item in ("i1", "new"):
        assert said(item, features={"price": 3}) is False
        shown = server.client.get(f"/v1/items/{item}").json()
        assert (shown["title"], shown["attributes"]["shelf"]) == ("Sold out", ["top"])
        assert server.items("nobody", filter={"allow": [item]}) == []
        assert said(item, available=True) is True
        assert said(item, title="Back") is True
        assert server.client.delete(f"/v1/items/{item}").status_code == 200
        assert said(item, title="New") is True  # an item that was removed is put again
