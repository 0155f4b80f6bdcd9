"""Frames of pandas and polars as they come: zones, nullable types, objects, indices."""

from __future__ import annotations

import uuid
from decimal import Decimal

import pandas as pd
import polars as pl
import pytest

from distilrec.data.preparation import prepare_dataset
from distilrec.data.readers import read_table
from distilrec.data.schema import Feature, Schema
from distilrec.errors import ColumnTypeError, ConfigError

SCHEMA = Schema(user_id="user", item_id="item", timestamp="ts")
START = 1_700_000_000
PLAIN = pd.DataFrame(
    [(u, (u + i) % 5 + 1, START + 100 * u + i) for u in range(1, 6) for i in range(5)],
    columns=["user", "item", "ts"],
)
EXPECTED = prepare_dataset(PLAIN, SCHEMA)


def assert_same(frame, **changes):
    data = prepare_dataset(frame, SCHEMA)
    assert data.info.user_ids == changes.get("user_ids", EXPECTED.info.user_ids)
    assert data.info.item_ids == EXPECTED.info.item_ids
    assert (data.times == EXPECTED.times).all()
    assert (data.items == EXPECTED.items).all()
    return data


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_all_units_and_zones(unit, zone):
    times = pd.to_datetime(PLAIN.ts, unit="s", utc=True)
    times = times.dt.tz_localize(None) if zone is None else times.dt.tz_convert(zone)
    assert_same(PLAIN.assign(ts=times.dt.as_unit(unit)))


@pytest.mark.parametrize(
    "dtype",
    [
        "Int64",
        "Int32",
        "UInt64",
        "Float64",
        "float64",
        "string",
        "category",
        "object",
        "int8",
        "int64[pyarrow]",
    ],
)
def test_ids_of_all_types(dtype):
    assert_same(PLAIN.assign(item=PLAIN["item"].astype(dtype)))
    assert_same(PLAIN.assign(item=PLAIN["item"].astype(str).astype("category")))


def test_timestamps_of_arrow_and_objects():
    times = pd.to_datetime(PLAIN.ts, unit="s")
    assert_same(PLAIN.assign(ts=times.astype("timestamp[ms][pyarrow]")))
    assert_same(
        PLAIN.assign(ts=times.dt.tz_localize("Europe/Berlin").dt.tz_localize(None).astype(object))
    )
    assert_same(
        PLAIN.assign(
            ts=pd.to_datetime(PLAIN.ts, unit="s", utc=True)
            .dt.tz_convert("Asia/Tokyo")
            .astype(object)
        )
    )


def test_missing_values_are_dropped_and_counted_and_change_no_other():
    large = 2**53 + 1
    frame = PLAIN.assign(user=PLAIN.user.astype("Int64").replace(3, large))
    frame.loc[7, "user"] = pd.NA
    data = prepare_dataset(frame, SCHEMA)
    assert str(large) in data.info.user_ids
    assert data.info.cleaning_report.dropped["no user id"] == 1
    mixed = PLAIN.assign(
        user=[None if n == 7 else large if u == 3 else float(u) for n, u in enumerate(PLAIN.user)]
    )
    mixed["user"] = pd.Series(
        [None if n == 7 else large if u == 3 else u for n, u in enumerate(PLAIN.user)], dtype=object
    )
    data = prepare_dataset(mixed, SCHEMA)
    assert str(large) in data.info.user_ids
    assert data.info.cleaning_report.dropped["no user id"] == 1


def test_objects_as_ids():
    ids = {u: uuid.UUID(int=u << 120 | u) for u in range(1, 6)}
    names = tuple(str(ids[int(u)]) for u in EXPECTED.info.user_ids)
    assert_same(PLAIN.assign(user=[ids[u] for u in PLAIN.user]), user_ids=names)
    assert_same(pl.DataFrame(PLAIN.to_dict("list")).with_columns(pl.Series("user", [ids[u] for u in PLAIN.user], dtype=pl.Object)), user_ids=names)  # fmt: skip
    assert_same(PLAIN.assign(user=[ids[u].bytes for u in PLAIN.user]), user_ids=names)
    assert_same(PLAIN.assign(user=[Decimal(u) for u in PLAIN.user]))
    assert_same(
        PLAIN.assign(user=pd.Series([u if u % 2 else str(u) for u in PLAIN.user], dtype=object))
    )
    assert_same(
        PLAIN.assign(user=pd.Series([u if u % 2 else float(u) for u in PLAIN.user], dtype=object))
    )
    huge = PLAIN.assign(user=[10**19 + u for u in PLAIN.user])
    assert prepare_dataset(huge, SCHEMA).info.user_ids == tuple(
        str(10**19 + int(u)) for u in EXPECTED.info.user_ids
    )
    wider = PLAIN.assign(user=pd.Series([10**30 + u for u in PLAIN.user], dtype=object))
    assert str(10**30 + 1) in prepare_dataset(wider, SCHEMA).info.user_ids


def test_infinite_and_large_floats_are_refused_and_counted():
    floats = PLAIN["item"].astype(float)
    floats[3], floats[9], floats[11] = float("inf"), 1e19, 2.0**53
    dropped = prepare_dataset(PLAIN.assign(item=floats), SCHEMA).info.cleaning_report.dropped
    assert dropped["item id that is infinite"] == 1
    assert dropped["item id that is a float so large that several integers are the same"] == 2


def test_columns_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ColumnTypeError, match="two columns 'item'"):
        prepare_dataset(pd.concat([PLAIN, PLAIN[["item"]]], axis=1), SCHEMA)
    with pytest.raises(ColumnTypeError, match="two columns '1'"):
        read_table(pd.DataFrame([[1, 2]], columns=[1, "1"]))
    with pytest.raises(ColumnTypeError, match="column 'item' holds Boolean values"):
        prepare_dataset(
            PLAIN.assign(item=(PLAIN["item"] > 3).astype("boolean").where(PLAIN.index != 5)), SCHEMA
        )
    with pytest.raises(ColumnTypeError, match="column 'item' holds"):
        prepare_dataset(PLAIN.assign(item=[object()] * len(PLAIN)), SCHEMA)
    with pytest.raises(ColumnTypeError, match="column 'item' holds"):
        prepare_dataset(PLAIN.assign(item=[[1], "a"] * 12 + [[2]]), SCHEMA)
    with pytest.raises(ConfigError, match="not Series"):
        read_table(PLAIN["item"])


def test_a_named_index_is_a_column():
    assert_same(PLAIN.set_index("user"))
    assert_same(PLAIN.set_index(["user", "ts"]))
    assert_same(PLAIN.set_index("user", drop=False))
    assert_same(PLAIN.set_index(pd.Index(range(7, 7 + len(PLAIN)))))


def test_features_of_all_types():
    items = pd.DataFrame(
        {
            "sku": pd.array([1, 2, 3, None, 5], dtype="Int64"),
            "price": pd.array([1.5, None, 2.5, 3.0, 4.0], dtype="Float64"),
            "tags": [["a"], None, ["a", "b"], [], ["c"]],
            "kind": pd.Categorical(["x", "y", None, "x", "y"]),
        }
    )
    features = (
        Feature("price", "numeric"),
        Feature("tags", "multi"),
        Feature("kind", "categorical"),
    )
    schema = Schema(
        user_id="user", item_id="item", timestamp="ts", item_key="sku", item_features=features
    )
    data = prepare_dataset(PLAIN, schema, items=items, derived_features=False)
    assert data.attributes.of(data.info.item_ids.index("3")) == {"price": 2.5, "tags": ["a", "b"]}
    assert data.attributes.of(data.info.item_ids.index("1")) == {
        "price": 1.5,
        "tags": ["a"],
        "kind": ["x"],
    }
    assert data.attributes.of(data.info.item_ids.index("2")) == {"kind": ["y"]}
