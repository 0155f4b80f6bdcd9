"""Splits, and that nothing of a later part leaks into what is fitted."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data.dataset import UNKNOWN_ITEM, load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.data.splits import Split, split_moments, split_rows
from distilrec.errors import ConfigError, DataError, FileMissingError, InvalidValueError
from tests.small_run import SCHEMA, dataset, tables

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(sizes=sizes, kind=st.sampled_from(["leave-one-out", "global-time"]), seed=st.integers(0, 99))
def test_parts_follow_each_other_in_time(sizes, kind, seed):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(rng.integers(0, 50, size)) for size in sizes]).astype(float)
    train_end, validation_end = split_rows(offsets, times, split_moments(times, Split(kind=kind)))
    assert (offsets[:-1] <= train_end).all()
    assert (train_end <= validation_end).all()
    assert (validation_end <= offsets[1:]).all()
    if kind == "leave-one-out":
        held_out = (validation_end - train_end, offsets[1:] - validation_end)
        expected = (np.array(sizes) >= 3).astype(int)
        assert (held_out[0] == expected).all()
        assert (held_out[1] == expected).all()
    else:
        part = np.concatenate(
            [
                np.repeat([0, 1, 2], [t - o, v - t, e - v])
                for o, t, v, e in zip(offsets, train_end, validation_end, offsets[1:], strict=False)
            ]
        )
        for earlier, later in ((0, 1), (1, 2), (0, 2)):
            if (part == earlier).any() and (part == later).any():
                assert times[part == earlier].max() <= times[part == later].min()


def _fitted(data):
    info = data.info
    warm = set(info.item_ids[: info.warm_items])
    return (
        info.user_encoder,
        info.item_encoder,
        info.event_types,
        warm,
        data.popularity().tolist()[: info.warm_items],
    )


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["leave-one-out", "global-time"]))
def test_held_out_rows_change_nothing_that_is_fitted(seed, kind):
    """Whatever stands in validation and test rows (items, event types), vocabularies and encoders stay the same."""
    made = tables(seed=seed % 5)
    split = Split(kind=kind)
    before = prepare_dataset(
        made["log"], SCHEMA, users=made["users"], items=made["items"], split=split
    )
    held_out = set()
    for user, user_id in enumerate(before.info.user_ids):
        rows = (
            made["log"]
            .with_row_index()
            .filter(pl.col("user_id") == user_id)
            .sort("timestamp", maintain_order=True)
        )
        held_out |= set(
            rows["index"].to_list()[int(before.train_end[user] - before.offsets[user]) :]
        )
    rng = np.random.default_rng(seed)
    index = pl.int_range(made["log"].height, eager=True)
    hidden = index.is_in(list(held_out))
    items = pl.Series([f"i{n}" for n in rng.integers(0, 99, made["log"].height)])
    changed = made["log"].with_columns(
        item_id=pl.when(hidden).then(items).otherwise("item_id"),
        event_type=pl.when(hidden).then(pl.lit("refund")).otherwise("event_type"),
    )
    after = prepare_dataset(changed, SCHEMA, users=made["users"], items=made["items"], split=split)
    assert _fitted(after) == _fitted(before)
    assert (after.item_features.columns == before.item_features.columns).all()
    assert (after.item_features.weights == before.item_features.weights).all()


def test_encoders_ignore_cold_users_and_items():
    made = tables()
    schema = Schema(
        timestamp="timestamp",
        user_key="user_id",
        item_key="item_id",
        user_features=(Feature("country", "categorical"),),
        item_features=(Feature("genres", "multi"),),
    )
    late = pl.DataFrame(
        {
            "user_id": ["late"] * 3,
            "item_id": ["late-item", "i1", "i2"],
            "timestamp": [1_699_999_990 + n for n in range(3)],
            "event_type": ["view"] * 3,
        }
    )
    data = prepare_dataset(
        pl.concat([made["log"], late]),
        schema,
        users=pl.concat(
            [
                made["users"].select("user_id", "country"),
                pl.DataFrame({"user_id": ["late"], "country": ["xx"]}),
            ]
        ),
        items=pl.concat(
            [
                made["items"].select("item_id", "genres"),
                pl.DataFrame({"item_id": ["late-item"], "genres": ["new-genre"]}),
            ]
        ),
        split=Split(kind="global-time"),
    )
    assert "country=xx" not in data.info.user_encoder.column_names()
    assert "genres=new-genre" not in data.info.item_encoder.column_names()
    late_user = data.info.user_ids.index("late")
    assert late_user >= data.info.warm_users
    assert data.info.item_ids.index("late-item") >= data.info.warm_items
    assert data.user_features.columns[late_user].tolist() == [0]  # the unknown slot


def test_unknown_items_are_kept_as_such_and_noted():
    made = tables()
    last = made["log"].group_by("user_id", maintain_order=True).last().height
    changed = made["log"].with_columns(
        item_id=pl.when(pl.int_range(pl.len()) == made["log"].height - 1)
        .then(pl.lit("never-seen"))
        .otherwise("item_id")
    )
    data = prepare_dataset(changed, SCHEMA, users=made["users"], items=made["items"])
    assert (data.items == UNKNOWN_ITEM).sum() == 1
    assert any("no training row and no table knows" in note for note in data.info.notes)
    assert last == data.users


def test_save_and_load_are_inverse(tmp_path):
    data = dataset("global-time")
    data.save(tmp_path / "data")
    again = load_dataset(tmp_path / "data")
    assert again.info == data.info
    assert again.fingerprint() == data.fingerprint()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    with pytest.raises(
        DataError,
        match=r"dataset\.json has no format number; this distilrec reads 1\n.*distilrec prepare",
    ):
        load_dataset(tmp_path / "data")
    with pytest.raises(FileMissingError, match="distilrec prepare"):
        load_dataset(tmp_path / "nowhere")


def test_nan_feature_and_wrong_settings_are_refused():
    made = tables()
    with pytest.raises(InvalidValueError, match="row 4: feature 'price' is nan"):
        broken = made["items"].with_columns(
            price=pl.when(pl.int_range(pl.len()) == 3).then(float("nan")).otherwise("price")
        )
        prepare_dataset(made["log"], SCHEMA, users=made["users"], items=broken)
    with pytest.raises(ConfigError, match=r"test_share is 0"):
        Split(test_share=0.0)
    with pytest.raises(ConfigError, match="declares 'a' twice"):
        Schema(user_features=(Feature("a", "numeric"), Feature("a", "categorical")))


def test_declared_features_need_their_table():
    with pytest.raises(ConfigError, match="features of items, but there is no table of items"):
        prepare_dataset(tables()["log"], SCHEMA, users=tables()["users"])


def test_duplicate_and_missing_rows_of_feature_tables_are_reported():
    made = tables()
    users = pl.concat([made["users"], made["users"].head(3)]).filter(pl.col("user_id") != "u5")
    data = prepare_dataset(made["log"], SCHEMA, users=users, items=made["items"])
    assert any(note.startswith("the users table: 3 rows") for note in data.info.notes)
    assert any(
        "1 users of the log have no row in the user table" in note for note in data.info.notes
    )
