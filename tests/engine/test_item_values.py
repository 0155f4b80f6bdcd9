"""What is said about an item while serving: the model and the filters see the same values, and those that training saw."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from distilrec import load
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.engine.filters import Condition, Filter
from distilrec.errors import ConfigError, DistilrecError
from distilrec.export.export import export_bundle
from distilrec.features.encoding import CategoricalEncoding, FeatureEncoder, as_category, as_parts
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.stores.records import ItemRecord
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests.servers import Server
from tests.small_run import tables

SCHEMA = Schema(
    timestamp="timestamp",
    user_key="user_id",
    item_key="item_id",
    user_features=(Feature("likes", "multi", ","),),
    item_features=(
        Feature("genres", "multi"),
        Feature("tags", "multi", ","),
        Feature("shelf", "categorical"),
        Feature("used", "categorical"),
        Feature("price", "numeric"),
        Feature("place", "vector", ","),
    ),
    item_attributes=(Feature("shops", "multi", ";"),),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tables()
    items = made["items"].with_columns(
        tags=pl.Series([f"t{n % 3},t{n % 5}, both" for n in range(42)]),
        shelf=pl.Series([float(n % 4) for n in range(42)]),
        used=pl.Series([n % 2 == 0 for n in range(42)]),
        place=pl.Series([f"{n}.5,2" for n in range(42)]),
        shops=pl.Series([f"s{n % 2};s{n % 7}" for n in range(42)]),
    )
    users = made["users"].with_columns(likes=pl.lit("t1,t2"))
    dataset = prepare_dataset(made["log"], SCHEMA, users=users, items=items, name="small")
    trained = train_model(
        RecurrentConfig(dim=8, max_history=16), dataset, TrainingConfig(epochs=2), seed=0
    )
    export_bundle(trained, dataset, path := tmp_path_factory.mktemp("values") / "bundle")
    return path


def passing(recommender, **conditions):
    where = Filter(attributes=conditions)
    return {answer.item_id for answer in recommender.recommend("nobody", k=999, where=where)}


@pytest.mark.parametrize(
    ("name", "as_text", "as_list"),
    [
        ("genres", "g0|g2", ["g0", "g2"]),
        ("tags", "t1, both,", ["t1", "both"]),
        ("shops", "s1;s3", ["s1", "s3"]),
    ],
)
def test_a_text_of_several_values_is_split_as_in_training(folder, name, as_text, as_list):
    """For the model (where it knows the column) and for the filter; as a feature and as an attribute."""
    recommender = load(folder)
    what = "attributes" if name == "shops" else "features"
    recommender.put_item(ItemRecord("text", **{what: {name: as_text}}))
    recommender.put_item(ItemRecord("list", **{what: {name: as_list}}))
    recommender.put_item(ItemRecord("said later", attributes={name: as_text}))
    (text, listed) = recommender.recommend("u1", ["text", "list"])
    assert text.score == listed.score
    assert (
        recommender.item("text").attributes
        == recommender.item("list").attributes
        == {name: sorted(as_list)}
    )
    for part in as_list:
        assert {"text", "list", "said later"} <= passing(
            recommender, **{name: Condition(any_of=(part,))}
        )
    assert "text" not in passing(recommender, **{name: Condition(any_of=(as_text,))})
    if what == "features":
        recommender.put_item(
            ItemRecord("other", features={name: as_text.replace("1", "2").replace("g0", "g1")})
        )
        other = recommender.recommend("u1", ["other"])[0]
        assert other.score != text.score  # the parts matter to the model


def test_what_training_read_is_what_a_cold_item_says(folder):
    """An item of the table and one that is added with the same cells have the same score and the same attributes."""
    recommender = load(folder)
    row = next(
        item for item in tables()["items"].to_dicts() if item["item_id"] == "i41"
    )  # in no interaction
    cells = {
        "genres": row["genres"], "price": row["price"], "tags": "t2,t1, both", "shelf": 1.0, "used": False,
        "place": "41.5,2",
    }  # fmt: skip
    recommender.add_item("same", cells)
    recommender.put_item(ItemRecord("same", attributes={"shops": "s1;s6"}))
    one, two = recommender.recommend("u1", ["i41", "same"])
    assert one.score == pytest.approx(two.score, abs=1e-6)
    assert (
        recommender.item("same").attributes | {"popularity": 0.0}
        == recommender.item("i41").attributes
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (True, "true"),
        (False, "false"),
        (3.0, "3"),
        (3, "3"),
        ("3", "3"),
        (2.5, "2.5"),
        (" x ", "x"),
    ],
)
def test_numbers_and_flags_are_one_category_everywhere(folder, given, text):
    recommender = load(folder)
    assert as_category(given) == text
    assert as_parts([given]) == [text]
    assert as_parts(given) == [text]
    recommender.put_item(ItemRecord("feature", features={"shelf": given}))
    recommender.put_item(ItemRecord("attribute", attributes={"shelf": given}))
    for name in ("feature", "attribute"):
        assert recommender.item(name).attributes == {"shelf": [text]}
        for asked in (given, text):
            assert name in passing(recommender, shelf=Condition(any_of=(asked,)))
            assert name not in passing(recommender, shelf=Condition(none_of=(asked,)))


def test_flags_of_older_bundles_are_found():
    encoder = FeatureEncoder((CategoricalEncoding("used", ("False", "True")),))
    assert encoder.encode({"used": True}) == encoder.encode({"used": "True"}) == [(2, 1.0)]
    assert encoder.encode({"used": False}) == [(1, 1.0)]


def test_a_feature_that_filters_cannot_take_changes_nothing(folder):
    recommender = load(folder)
    before = recommender.recommend("u1", k=999)
    for record in (
        ItemRecord("new", features={"price": "cheap"}),
        ItemRecord("i3", features={"price": "1.5"}),
        ItemRecord("i3", attributes={"price": "1.5"}),
    ):
        for call in (recommender.check_item, recommender.put_item):
            with pytest.raises(DistilrecError, match="'price' is numeric"):
                call(record)
    assert not recommender.knows_item("new")
    assert recommender.recommend("u1", k=999) == before


def test_a_plain_text_in_a_condition_is_refused(folder):
    recommender = load(folder)
    for wrong in (Condition(any_of="t1"), Condition(none_of="t1")):
        with pytest.raises(ConfigError, match="'tags' has the text 't1' where a list"):
            passing(recommender, tags=wrong)


def test_the_separator_goes_with_the_bundle(folder):
    manifest = load(folder).manifest
    assert {e.name: e.separator for e in manifest.item_encoder.encodings if hasattr(e, "separator")} == {
        "genres": "|", "tags": ",", "place": ",",
    }  # fmt: skip
    assert (
        b'"separator":"|"' not in (folder / "manifest.json").read_bytes()
    )  # as bundles always were
    recommender = load(folder)
    recommender.set_user("text", {"likes": "t1,t2"})
    recommender.set_user("list", {"likes": ["t1", "t2"]})
    assert recommender.recommend("text") == recommender.recommend("list")
    with pytest.raises(ConfigError, match="the separator of 'tags' is empty"):
        Feature("tags", "multi", "")


@pytest.mark.server
def test_over_http(folder, tmp_path):
    server = Server(folder, f"sqlite:///{tmp_path / 'store.db'}", log_folder=tmp_path)
    for name, body in (
        ("text", {"features": {"genres": "g0|g2", "tags": "t1, both", "used": True}}),
        ("list", {"features": {"genres": ["g0", "g2"], "tags": ["t1", "both"], "used": "true"}}),
    ):
        response = server.client.put(f"/v1/items/{name}", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["attributes"] == {
            "genres": ["g0", "g2"],
            "tags": ["both", "t1"],
            "used": ["true"],
        }
    text, listed = server.post("/v1/rank", user_id="u1", item_ids=["text", "list"])["items"]
    assert text["score"] == listed["score"]
    for part in ("both", "t1"):
        found = server.items("u1", k=99, filter={"attributes": {"tags": {"any_of": [part]}}})
        assert {"text", "list"} <= set(found)
    assert server.stop() == 0
