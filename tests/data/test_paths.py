"""Tables of many files: folders with partitions, patterns and compressed files."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.data.paths import name_of_path
from distilrec.data.preparation import prepare_dataset
from distilrec.data.readers import open_log, read_table
from distilrec.data.schema import Schema
from distilrec.errors import ColumnTypeError, ConfigError

DAYS = ("2026-01-01", "2026-01-02")
EXPECTED = [("ann", "a", DAYS[0]), ("bob", "b", DAYS[0]), ("ann", "c", DAYS[1])]


def compressed_with_polars(path: Path, text: str) -> None:
    pl.DataFrame({"line": text.splitlines()}).write_csv(
        path, include_header=False, quote_style="never", compression="zstd"
    )


def written(folder: Path, suffix: str) -> Path:
    """A log of three events in a folder for each day."""
    for day in DAYS:
        rows = [(user, item) for user, item, at in EXPECTED if at == day]
        path = folder / f"day={day}" / f"part-0{suffix}"
        path.parent.mkdir(parents=True)
        lines = "".join(f"{user},{item}\n" for user, item in rows)
        match suffix:
            case ".parquet":
                pl.DataFrame(rows, ["user_id", "item_id"], orient="row").write_parquet(path)
            case ".csv":
                path.write_text("user_id,item_id\n" + lines)
            case ".csv.gz":
                path.write_bytes(gzip.compress(f"user_id,item_id\n{lines}".encode()))
            case ".csv.zst":
                compressed_with_polars(path, "user_id,item_id\n" + lines)
            case ".jsonl.gz":
                text = "".join(f'{{"user_id": "{u}", "item_id": "{i}"}}\n' for u, i in rows)
                path.write_bytes(gzip.compress(text.encode()))
            case ".inter":
                path.write_text("user_id:token\titem_id:token\n" + lines.replace(",", "\t"))
    (folder / "_SUCCESS").touch()
    return folder


@pytest.mark.parametrize(
    "suffix", [".parquet", ".csv", ".csv.gz", ".csv.zst", ".jsonl.gz", ".inter"]
)
def test_partitions_are_columns(tmp_path, suffix):
    folder = written(tmp_path / "log", suffix)
    for path in (folder, folder / "*" / f"*{suffix}", folder / "**" / f"*{suffix}"):
        table = read_table(path)
        assert table.select("user_id", "item_id", "day").rows() == EXPECTED
    assert read_table(folder / "day=2026-01-02").columns == ["user_id", "item_id"]
    log = open_log(folder, tmp_path)
    assert log.rows == 3
    assert log.slice(1, 2, ["day"])["day"].to_list() == list(DAYS)


def test_a_partition_is_the_time_of_a_data_set(tmp_path):
    folder = tmp_path / "log"
    for day in range(1, 8):
        path = folder / f"day=2026-01-0{day}" / "part-0.csv"
        path.parent.mkdir(parents=True)
        path.write_text("user_id,item_id\n" + "".join(f"{u},{(u + day) % 5}\n" for u in range(9)))
    dataset = prepare_dataset(folder, Schema(timestamp="day"))
    assert len(dataset.items) == 63
    assert len(set(dataset.times)) == 7


@given(
    values=st.lists(
        st.text("ab=%/ ü:", min_size=1, max_size=6), min_size=1, max_size=4, unique=True
    )
)
def test_values_as_polars_writes_them(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    frame = pl.DataFrame({"place": values, "row": list(range(len(values)))})
    frame.write_parquet(pl.PartitionBy(folder, key="place", include_key=False), mkdir=True)
    table = read_table(folder).sort("row")
    assert table["place"].to_list() == values


def test_partitions_without_a_value_and_columns_that_the_files_have(tmp_path):
    for value, held in (("__HIVE_DEFAULT_PARTITION__", 1), ("2", 2)):
        path = tmp_path / f"shop={value}" / "part.parquet"
        path.parent.mkdir()
        pl.DataFrame({"user_id": [held]}).write_parquet(path)
    assert read_table(tmp_path)["shop"].to_list() == ["2", None]
    for path in tmp_path.rglob("*.parquet"):
        pl.DataFrame({"user_id": [1], "shop": [9]}).write_parquet(path)
    assert read_table(tmp_path)["shop"].to_list() == [9, 9]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_with_other_columns_is_named(tmp_path, suffix):
    folder = written(tmp_path / "log", suffix)
    odd = folder / "day=2026-01-02" / f"part-1{suffix}"
    frame = pl.DataFrame({"user_id": ["ann"], "product": ["d"]})
    frame.write_csv(odd) if suffix == ".csv" else frame.write_parquet(odd)
    with pytest.raises(ColumnTypeError) as caught:
        read_table(folder)
    assert caught.value.context["file"] == str(odd)
    assert "part-1" in caught.value.message and "product" in caught.value.message
    odd.unlink()
    stray = folder / f"part-9{suffix}"
    frame = pl.DataFrame({"user_id": ["ann"], "item_id": ["d"]})
    frame.write_csv(stray) if suffix == ".csv" else frame.write_parquet(stray)
    with pytest.raises(ColumnTypeError, match="different columns: day"):
        read_table(folder)


def test_other_folders_are_counted_and_said(tmp_path):
    folder = written(tmp_path / "log", ".csv")
    for name in ("backup", "old", "_temporary", ".hidden"):
        (folder / name).mkdir()
        (folder / name / "log.csv").write_text("user_id,item_id\nx,y\n")
    log = open_log(folder, tmp_path)
    assert log.rows == 3
    assert "2 folders in it are not read, such as backup" in log.notes[0]


def test_several_types_of_files_in_partitions(tmp_path):
    folder = written(tmp_path / "log", ".csv")
    (folder / "day=2026-01-02" / "extra.jsonl").write_text('{"user_id": 1}\n')
    with pytest.raises(ConfigError, match="files of several types"):
        read_table(folder)


def test_what_a_table_is_called():
    assert name_of_path(Path("data/log.parquet")) == "log"
    assert name_of_path(Path("data/days")) == "days"
    assert name_of_path(Path("data/events/*.parquet")) == "events"
    assert name_of_path(Path("*.csv")) == "log"
