"""Tables on an S3 server of its own."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path

import polars as pl
import pytest

from distilrec.data.readers import open_log, read_table
from distilrec.data.tables import DeltaTable
from distilrec.errors import (
    ColumnTypeError,
    ConfigError,
    FileMissingError,
    MissingExtraError,
    SourceUnavailableError,
)
from distilrec.runs.config import read_config
from tests import servers

pytestmark = pytest.mark.server
ROWS = pl.DataFrame({"user_id": ["ann", "bob"], "item_id": ["a", "b"]})


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """The address of a running server."""
    port, log = servers.free_port(), tmp_path_factory.mktemp("s3") / "log"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return urllib.request.urlopen(f"{url}/moto-api/data.json").status == 200
            except OSError:
                return False

        try:
            servers.until(answers, "the S3 server answers")
            urllib.request.urlopen(urllib.request.Request(f"{url}/shop", method="PUT"))
            yield url
        finally:
            process.terminate()


@pytest.fixture
def put(s3, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "geheim",
        "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def put(name: str, content: bytes) -> None:
        import obstore

        from distilrec.data import remote

        obstore.put(remote._store("s3://shop"), name, content)

    return put


def parquet(frame: pl.DataFrame, tmp_path: Path) -> bytes:
    frame.write_parquet(tmp_path / "made.parquet")
    return (tmp_path / "made.parquet").read_bytes()


def test_objects_folders_and_patterns(put, tmp_path):
    for day in (1, 2):
        put(f"log/day=2026-01-0{day}/part.parquet", parquet(ROWS, tmp_path))
    put("log/_SUCCESS", b"x")
    put("log/old/part.parquet", parquet(ROWS, tmp_path))
    put("text/a b.csv", b"user_id,item_id\nann,a\n")
    for address in ("s3://shop/log", "s3://shop/log/day=*/*.parquet"):
        read = read_table(address)
        assert read.select("user_id", "item_id").equals(pl.concat([ROWS, ROWS]))
        assert read["day"].unique().sort().to_list() == ["2026-01-01", "2026-01-02"]
    assert read_table("s3://shop/text/a b.csv").rows() == [("ann", "a")]
    log = open_log("s3://shop/log", tmp_path / "scratch")
    assert log.name == "s3://shop/log"
    assert log.notes[0].startswith("s3://shop/log: 1 folders in it are not read, such as old")


def test_errors_name_the_address(put, tmp_path, monkeypatch):
    put("odd/a.csv", b"user_id,item_id\nann,a\n")
    put("odd/b.csv", b"user_id,product\nann,a\n")
    with pytest.raises(ColumnTypeError) as caught:
        read_table("s3://shop/odd")
    assert caught.value.context["file"] == "s3://shop/odd/b.csv"
    with pytest.raises(FileMissingError, match="s3://shop/none does not exist"):
        read_table("s3://shop/none")
    with pytest.raises(SourceUnavailableError, match="s3://other/log.csv cannot be read"):
        read_table("s3://other/log.csv")
    with pytest.raises(ConfigError, match="holds a password"):
        read_table("s3://key:geheim@shop/log.csv")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(SourceUnavailableError, match="cannot be read") as caught:
        read_table("s3://shop/odd")
    assert "geheim" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match="obstore"):
        read_table("s3://shop/odd")


@pytest.mark.adapters
def test_a_delta_table(put, tmp_path, monkeypatch):
    for _ in range(2):
        ROWS.write_delta(tmp_path / "orders", mode="append")
    for file in (tmp_path / "orders").rglob("*"):
        if file.is_file():
            put(f"lake/orders/{file.relative_to(tmp_path / 'orders')}", file.read_bytes())
    table = DeltaTable("s3://shop/lake/orders")
    assert read_table(table).equals(pl.concat([ROWS, ROWS]))
    with pytest.raises(ConfigError, match="s3://shop/lake/orders is a Delta table"):
        read_table("s3://shop/lake/orders")
    with pytest.raises((FileMissingError, SourceUnavailableError), match="s3://shop/lake/none"):
        read_table(DeltaTable("s3://shop/lake/none"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(SourceUnavailableError, match="cannot be read") as caught:
        read_table(table)
    assert "another" not in str(caught.value)


def test_settings_keep_the_address(tmp_path):
    (tmp_path / "my.toml").write_text('data.interactions = "s3://shop/log/*.csv"\n')
    assert read_config(tmp_path / "my.toml").data.interactions == "s3://shop/log/*.csv"
