from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrec.data.lines import TextFormat
from distilrec.data.readers import open_log, read_table
from distilrec.errors import (
    ColumnTypeError,
    ConfigError,
    DataError,
    FileMissingError,
    NotEnoughDataError,
    StorageError,
)
from distilrec.files import read_json

LOG = pl.DataFrame(
    {
        "user_id": ["1", "2"],
        "item_id": ["a b", "c"],
        "rating": ["5", "3.5"],
        "timestamp": ["10", "20"],
    }
)


def assert_sliced(source, expected):
    """A log is read by slices, whatever it comes from."""
    with TemporaryDirectory() as scratch:
        log = open_log(source, Path(scratch))
        assert log.rows == expected.height
        columns = expected.columns[::-1]
        slices = [log.slice(first, 1, columns) for first in range(log.rows)]
        assert pl.concat(slices).equals(expected.select(columns))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "user_id,item_id,rating,timestamp\n1,a b,5,10\n2,c,3.5,20\n"),
        ("log.csv", "user_id;item_id;rating;timestamp\n1;a b;5;10\n2;c;3.5;20\n"),
        ("log.tsv", "user_id\titem_id\trating\ttimestamp\n1\ta b\t5\t10\n2\tc\t3.5\t20\n"),
        (
            "log.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\ta b\t5\t10\n2\tc\t3.5\t20\n",
        ),
    ],
)
def test_text_formats_give_the_same_table(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_table(tmp_path / name).equals(LOG)
    assert_sliced(tmp_path / name, LOG)


def test_jsonl_and_parquet_keep_their_types(tmp_path):
    typed = LOG.with_columns(pl.col("rating").cast(pl.Float64), pl.col("timestamp").cast(pl.Int64))
    typed.write_parquet(tmp_path / "log.parquet")
    typed.write_ndjson(tmp_path / "log.jsonl")
    assert read_table(tmp_path / "log.parquet").equals(typed)
    assert read_table(tmp_path / "log.jsonl").equals(typed)
    for source in (tmp_path / "log.parquet", tmp_path / "log.jsonl", typed, typed.lazy()):
        assert_sliced(source, typed)


def test_movielens_double_colon_in_latin_1(tmp_path):
    (tmp_path / "movies.dat").write_bytes(
        "1::Les Misérables (1995)::Drama|Musical\n2::Heat (1995)::Action\n".encode("latin-1")
    )
    columns = ["item_id", "title", "genres"]
    with pytest.raises(DataError, match=r"movies\.dat, line 1: the byte 0xe9 is not text in utf-8"):
        read_table(tmp_path / "movies.dat", columns)
    table = read_table(tmp_path / "movies.dat", columns, TextFormat("latin-1"))
    assert table["title"].to_list() == ["Les Misérables (1995)", "Heat (1995)"]


def test_atomic_sequences_are_split(tmp_path):
    (tmp_path / "x.item").write_text("item_id:token\tclass:token_seq\n1\tAction Comedy\n2\tDrama\n")
    assert read_table(tmp_path / "x.item")["class"].to_list() == [["Action", "Comedy"], ["Drama"]]


def test_frames(tmp_path):
    assert read_table(LOG) is LOG
    assert read_table(LOG.lazy()).equals(LOG)
    frame = pd.DataFrame(
        {
            "user_id": [1.0, None],
            "item_id": ["a", None],
            "when": pd.to_datetime(["2024-01-01", None]),
        }
    )
    table = read_table(frame)
    assert table["item_id"].to_list() == ["a", None]
    assert table["when"].dtype.is_temporal()
    with pytest.raises(ConfigError, match="polars frame or a pandas frame, not dict"):
        read_table({"user_id": [1]})


cell = st.text(
    st.characters(
        codec="utf-8", exclude_characters='\r\n\t,;"\0', exclude_categories=["Cs", "Zs", "Cc"]
    ),
    min_size=1,
)


@pytest.mark.slow
@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=20))
def test_csv_round_trip(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    table = pl.DataFrame(
        {"user_id": [user for user, _ in rows], "item_id": [item for _, item in rows]}
    )
    table.write_csv(path)
    assert read_table(path).equals(table)


def test_wrong_files(tmp_path):
    with pytest.raises(FileMissingError, match=r"missing\.csv does not exist"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(NotEnoughDataError, match="is empty"):
        read_table(tmp_path / "empty.csv")
    (tmp_path / "log.xlsx").write_text("x")
    with pytest.raises(ConfigError, match="unknown file type '.xlsx'"):
        read_table(tmp_path / "log.xlsx")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"log\.parquet cannot be read as parquet"):
        read_table(tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text('{"user_id": 1}\n{"user_id": ')
    with pytest.raises(DataError, match=r"log\.jsonl cannot be read"):
        read_table(tmp_path / "log.jsonl")
    for name in ("log.parquet", "log.jsonl"):
        with pytest.raises(DataError, match=f"{name} cannot be read as"):
            open_log(tmp_path / name, tmp_path)


def test_a_file_that_this_user_may_not_read():
    user = os.geteuid()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "log.csv"
        file.write_text("user_id,item_id\na,b\n")
        file.chmod(0o000)
        Path(folder).chmod(0o755)
        os.seteuid(user or 65_534)  # root may read all
        try:
            for read in (read_table, lambda path: read_json(path, dict, error=DataError, fix="")):
                with pytest.raises(StorageError, match=r"log\.csv cannot be opened: Permission"):
                    read(file)
        finally:
            os.seteuid(user)


def test_dat_needs_names_and_full_lines(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::10::5::100\n2::20::4\n")
    with pytest.raises(ConfigError, match="has no header line"):
        read_table(tmp_path / "ratings.dat")
    with pytest.raises(ColumnTypeError, match="line 2: 3 fields where 4 are declared") as caught:
        read_table(tmp_path / "ratings.dat", ["user_id", "item_id", "rating", "timestamp"])
    assert caught.value.context["row"] == 2
