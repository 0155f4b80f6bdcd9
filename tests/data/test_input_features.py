"""Feature tables from other tools: lists that were printed, names that are taken, numbers with commas."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data.preparation import prepare_dataset
from distilrec.data.schema import Feature, Schema
from distilrec.errors import ColumnTypeError, ConfigError
from distilrec.features.encoding import as_parts, as_vector
from distilrec.features.lists import parse_list

START = 1_700_000_000
LOG = pl.DataFrame(
    [(f"u{u}", f"i{(u + i) % 5}", START + 10 * u + i, 2.0) for u in range(4) for i in range(5)],
    schema=["user_id", "item_id", "timestamp", "rating"],
    orient="row",
)


def dataset(items, *features, attributes=(), **options):
    schema = Schema(
        timestamp="timestamp",
        weight="rating",
        item_key="sku",
        item_features=features,
        item_attributes=attributes,
    )
    return prepare_dataset(LOG, schema, items=items, **options)


def tags(cells, separator=",", **column):
    items = pl.DataFrame({"sku": [f"i{n}" for n in range(len(cells))], "tags": cells}, **column)
    data = dataset(items, Feature("tags", "multi", separator))
    return [
        data.attributes.of(data.info.item_ids.index(f"i{n}")).get("tags", [])
        for n in range(len(cells))
    ]


@pytest.mark.parametrize(
    "cells",
    [
        ["['red', 'blue']", "['red']", "[]"],
        ['["red", "blue"]', '["red"]', "[]"],
        ["('red', 'blue')", "('red',)", "()"],
        ["{'red', 'blue'}", "{'red'}", "set()"],
        ["['red', 'blue', None]", "['red', nan]", "[None]"],
        ["red,blue", "red", None],
        [["red", "blue"], ["red"], []],
    ],
)
@pytest.mark.parametrize("separator", [",", "|"])
def test_lists_in_cells_are_lists(cells, separator, tmp_path):
    if cells[0] == "red,blue":
        cells = [cell and cell.replace(",", separator) for cell in cells]
    assert tags(cells, separator) == [["blue", "red"], ["red"], []]
    if isinstance(cells[0], str):
        table = pl.DataFrame({"sku": ["i0", "i1", "i2"], "tags": cells})
        table.write_csv(tmp_path / "items.csv")
        data = dataset(tmp_path / "items.csv", Feature("tags", "multi", separator))
        assert sorted(data.attributes.categories["tags"]) == ["blue", "red"]


def test_lists_of_parquet_and_json_lines(tmp_path):
    table = pl.DataFrame({"sku": ["i0", "i1"], "tags": [["red, dark", "blue"], ["red, dark"]]})
    table.write_parquet(tmp_path / "items.parquet")
    table.write_ndjson(tmp_path / "items.jsonl")
    for name in ("items.parquet", "items.jsonl"):
        data = dataset(tmp_path / name, Feature("tags", "multi", ","))
        assert sorted(data.attributes.categories["tags"]) == ["blue", "red, dark"], name
    objects = table.with_columns(tags=pl.Series([[{"name": "red"}], [{"name": "blue"}]]))
    objects.write_parquet(tmp_path / "objects.parquet")
    with pytest.raises(ColumnTypeError, match="column 'tags' holds objects"):
        dataset(tmp_path / "objects.parquet", Feature("tags", "multi"))


@pytest.mark.parametrize(
    "cell",
    [
        "['red' 'blue']",
        "[red, blue]",
        "[{'id': 1, 'name': 'red'}]",
        "['red', 'blue'",
        "{a: 1}",
        "{red,blue}",
    ],
)
@pytest.mark.parametrize("separator", [",", "|"])
def test_what_only_looks_like_a_list_names_its_row(cell, separator):
    if not cell.endswith(("]", "}")):
        assert tags(["a", cell], "|")[1] == [cell]  # no bracket at the end: ordinary text
        return
    with pytest.raises(ColumnTypeError, match="row 2: column 'tags' holds") as caught:
        tags(["a", cell], separator)
    assert caught.value.context == {"file": "the items table", "column": "tags", "row": 2}


def test_ordinary_text_with_brackets_is_text():
    assert tags(["[a]|[b]", "(500) days", "[special]", "a (b)|c"], "|") == [
        ["[a]", "[b]"], ["(500) days"], ["[special]"], ["a (b)", "c"],
    ]  # fmt: skip


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=6), st.text(st.sampled_from("ab'\"\\\n,[]é"), max_size=6)),
        max_size=6,
    )
)
def test_what_python_and_json_print_is_read_back(values):
    import json

    assert parse_list(repr(values)) == values
    assert parse_list(repr(tuple(values))) == values
    assert parse_list(json.dumps(values)) == values
    assert parse_list(json.dumps(values, ensure_ascii=False)) == values


@settings(deadline=None)
@given(st.text(st.sampled_from("[](){}'\",: ab1.\\"), max_size=12))
def test_no_text_breaks_the_reading_of_lists(text):
    try:
        found = parse_list(text)
    except ValueError as problem:
        assert "looks like a list" in str(problem)
        return
    assert found is None or all(isinstance(part, str) for part in found)


@pytest.mark.parametrize(
    "cell", ["[0.5, -1e-3, 2]", "[ 0.5   -1e-3\n 2. ]", "0.5|-1e-3|2", "(0.5, -0.001, 2)"]
)
def test_vectors_in_cells(cell):
    assert as_vector("v", cell) == [0.5, -0.001, 2.0]
    items = pl.DataFrame({"sku": ["i0"], "v": [cell]})
    data = dataset(items, Feature("v", "vector"), derived_features=False)
    assert data.item_features.dense()[data.info.item_ids.index("i0")].tolist() == pytest.approx(
        [0.5, -0.001, 2.0]
    )


def test_a_vector_that_cannot_be_read_names_its_row():
    for cell in ("[0.5, 0.1, ..., 2]", "0,5|0,1", "[0.5 0.1 ... 2]"):
        with pytest.raises(ColumnTypeError, match="row 2: column 'v' holds"):
            dataset(pl.DataFrame({"sku": ["i0", "i1"], "v": ["1|2", cell]}), Feature("v", "vector"))


def test_the_engine_reads_printed_lists_too():
    assert as_parts("['red', 'blue']") == ["red", "blue"]
    assert as_parts("red|blue") == ["red", "blue"]
    assert as_parts("[red, blue]") == ["[red, blue]"]


# Names of ours.


@pytest.mark.parametrize("name", ["popularity", "sales_volume"])
def test_a_column_with_the_name_of_ours_keeps_its_values(name):
    items = pl.DataFrame({"sku": [f"i{n}" for n in range(5)], name: [100.5 * n for n in range(5)]})
    for options in (
        {"features": (Feature(name, "numeric"),)},
        {"features": (), "attributes": (Feature(name, "numeric"),)},
    ):
        data = dataset(items, *options["features"], attributes=options.get("attributes", ()))
        own = data.attributes.numbers[name][[data.info.item_ids.index(f"i{n}") for n in range(5)]]
        assert own.tolist() == [0.0, 100.5, 201.0, 301.5, 402.0]
        names = [encoding.name for encoding in data.info.item_encoder.encodings]
        assert f"{name}_in_log" in names
        other = "sales_volume" if name == "popularity" else "popularity"
        assert other in names
        counts = data.popularity() * (1 if name == "popularity" else 2.0)
        assert data.attributes.numbers[f"{name}_in_log"].tolist() == counts.tolist()
    data = dataset(items, Feature(name, "numeric"), derived_features=False)
    assert sorted(data.attributes.numbers[name].tolist()) == [0.0, 100.5, 201.0, 301.5, 402.0]
    taken = items.with_columns(pl.lit(1).alias(f"{name}_in_log"))
    with pytest.raises(ConfigError, match=f"'{name}_in_log'"):
        dataset(taken, Feature(name, "numeric"), Feature(f"{name}_in_log", "numeric"))


def test_numbers_with_commas_name_column_and_row(tmp_path):
    for number in ("1,5", "1.234,5", "1,234", "1 234", "5 EUR"):
        items = pl.DataFrame({"sku": ["i0", "i1"], "price": ["2", number]})
        items.write_csv(tmp_path / "items.csv")
        with pytest.raises(
            ColumnTypeError, match=f"items.csv, row 2: column 'price' holds '{number}'"
        ) as caught:
            dataset(tmp_path / "items.csv", Feature("price", "numeric"))
        assert "thousands separators" in caught.value.fix
