"""Delta and Iceberg tables that their own libraries have written."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import polars as pl
import pytest

from distilrec.cli import main
from distilrec.data.dataset import load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.readers import open_log, read_table
from distilrec.data.schema import Schema
from distilrec.data.tables import DeltaTable, IcebergTable
from distilrec.errors import (
    ColumnMissingError,
    ConfigError,
    FileMissingError,
    MissingExtraError,
    SourceUnavailableError,
)
from distilrec.runs.config import read_config

pytestmark = pytest.mark.adapters

ROWS = pl.DataFrame(
    [(f"u{user}", f"i{(user * step) % 11}", step) for user in range(9) for step in range(7)],
    ["user_id", "item_id", "timestamp"],
    orient="row",
)
WITHOUT = ROWS.filter(pl.col("user_id") != "u3")
SCHEMA = Schema(timestamp="timestamp", timestamp_format="seconds")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    """A folder with both tables, in which rows were added and deleted, and Iceberg's metadata file."""
    import deltalake
    from pyiceberg.catalog import load_catalog

    folder = tmp_path_factory.mktemp("tables")
    for first in (0, 30):
        ROWS[first : first + 30 if first == 0 else None].write_delta(
            folder / "orders", mode="append"
        )
    deltalake.DeltaTable(folder / "orders").delete("user_id = 'u3'")
    (folder / "lake").mkdir()
    uri = f"sqlite:///{folder}/catalog.db"
    catalog = load_catalog("shop", type="sql", uri=uri, warehouse=f"file://{folder}/lake")
    catalog.create_namespace("web")
    table = catalog.create_table("web.orders", schema=ROWS.to_arrow().schema)
    table.append(ROWS[:30].to_arrow())
    table.append(ROWS[30:].to_arrow())
    table.delete("user_id = 'u3'")
    catalog.engine.dispose()
    return folder, table.metadata_location


@pytest.fixture
def tables(made, monkeypatch) -> dict[str, DeltaTable | IcebergTable]:
    from pyiceberg.utils.config import Config

    folder, metadata = made
    monkeypatch.setenv("PYICEBERG_CATALOG__SHOP__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__SHOP__URI", f"sqlite:///{folder}/catalog.db")
    # pyiceberg has read the environment when it was imported
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    return {
        "delta": DeltaTable(str(folder / "orders")),
        "iceberg": IcebergTable("web.orders", "shop"),
        "metadata": IcebergTable(metadata),
    }


@pytest.mark.parametrize("kind", ["delta", "iceberg", "metadata"])
def test_tables_give_the_rows_that_are_not_deleted(tables, kind, tmp_path):
    table = tables[kind]
    log = open_log(table, tmp_path / "scratch")
    assert log.read().sort("user_id", "timestamp").equals(WITHOUT)
    assert log.notes[0].startswith(f"{table.name} was read in its ")
    assert len(prepare_dataset(table, SCHEMA).items) == WITHOUT.height
    assert read_table(table).height == WITHOUT.height


def test_a_run_from_both_by_the_command_line(tables, made, tmp_path, capsys):
    shutil.copytree(made[0] / "orders", tmp_path / "orders")
    path = tmp_path / "my.toml"
    path.write_text(
        """
        [data]
        interactions = { kind = "delta", table = "orders" }
        items = { kind = "iceberg", table = "web.orders", catalog = "shop" }
        [data.schema]
        timestamp = "timestamp"
        timestamp_format = "seconds"
        item_key = "item_id"
        """
    )
    config = read_config(path)
    assert config.data.interactions == DeltaTable(str(tmp_path / "orders"))
    main(["prepare", "--config", str(path), "--run", "run"])
    info = load_dataset(Path("run/data")).info
    assert info.name == "orders"
    said = " ".join((*info.notes, *info.cleaning_report.notes))
    assert "orders was read in its version 2" in said
    assert "was read in its snapshot" in said
    assert pl.read_parquet("run/log/*.parquet").height == WITHOUT.height
    path.write_text('[data]\ninteractions = { kind = "delta", tabel = "orders" }\n')
    with pytest.raises(ConfigError, match="no key `tabel`") as caught:
        read_config(path)
    assert "did you mean `table`" in caught.value.fix


def test_a_delta_table_is_no_folder_of_files(made):
    with pytest.raises(ConfigError, match="is a Delta table") as caught:
        read_table(made[0] / "orders")
    assert 'kind = "delta"' in caught.value.fix


def test_what_is_no_table(tables, made, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    ROWS.write_parquet(tmp_path / "folder" / "part.parquet")
    with pytest.raises(FileMissingError, match="is no Delta table: it has no folder _delta_log"):
        read_table(DeltaTable(str(tmp_path / "folder")))
    damaged = tmp_path / "damaged"
    shutil.copytree(made[0] / "orders", damaged)
    for file in damaged.glob("*.parquet"):
        file.unlink()
    with pytest.raises(FileMissingError, match="damaged"):
        read_table(DeltaTable(str(damaged)))
    (damaged / "_delta_log" / "00000000000000000000.json").write_text("{")
    with pytest.raises(SourceUnavailableError, match="damaged cannot be read"):
        read_table(DeltaTable(str(damaged)))
    with pytest.raises(FileMissingError, match=r"web\.none does not exist"):
        read_table(IcebergTable("web.none", "shop"))
    with pytest.raises(FileMissingError, match="does not exist"):
        read_table(IcebergTable(str(tmp_path / "00001-none.metadata.json")))
    with pytest.raises(
        SourceUnavailableError, match="cannot be read: .*PYICEBERG_CATALOG__OTHER__URI"
    ):
        read_table(IcebergTable("web.orders", "other"))
    with pytest.raises(ConfigError, match="without a catalog"):
        IcebergTable("web.orders")
    with pytest.raises(ColumnMissingError, match="the Delta table .* has no column 'buyer'"):
        prepare_dataset(tables["delta"], Schema(user_id="buyer"))


def test_a_catalog_that_never_answers_is_given_up(monkeypatch):
    from pyiceberg.utils.config import Config

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("PYICEBERG_CATALOG__SLOW__TYPE", "rest")
        monkeypatch.setenv("PYICEBERG_CATALOG__SLOW__URI", address)
        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
        with pytest.raises(SourceUnavailableError, match=r"gave no answer for 0\.3 s") as caught:
            read_table(IcebergTable("web.orders", "slow", timeout=0.3))
    assert "raise `timeout`" in caught.value.fix


@pytest.mark.parametrize(
    ("package", "extra"), [("deltalake", "delta"), ("pyiceberg.catalog", "iceberg")]
)
def test_without_the_package(tables, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=package.partition(".")[0]) as caught:
        read_table(tables[extra])
    assert caught.value.fix == f"pip install 'distilrec[{extra}]'"
