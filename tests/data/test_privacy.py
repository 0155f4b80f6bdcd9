"""What leaves the ids of people out of everything that is written."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
import time

import msgspec
import numpy as np
import polars as pl
import pytest

from distilrec import load, runs
from distilrec.data.cleaning import Cleaning
from distilrec.data.preparation import prepare_dataset
from distilrec.data.pseudonyms import pseudonym, pseudonyms
from distilrec.data.schema import Schema
from distilrec.errors import ConfigError
from tests.small_run import SCHEMA, small_config, tables, write_tables

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef"


def test_a_pseudonym_is_a_keyed_hash():
    expected = hmac.new(KEY.encode(), b"u\xc3\xa4", hashlib.sha256).hexdigest()[:32]
    assert pseudonym("uä", KEY.encode()) == expected
    column = pl.Series(["uä", None, "", "b", "uä"])
    assert pseudonyms(column, KEY.encode()).to_list() == [
        expected,
        None,
        "",
        pseudonym("b", KEY.encode()),
        expected,
    ]
    assert pseudonym("uä", b"another key of 16 bytes") != expected


def test_pseudonyms_change_nothing_but_the_names():
    made = tables()
    plain, hidden = (
        prepare_dataset(
            made["log"],
            SCHEMA,
            users=made["users"],
            items=made["items"],
            rows_per_part=100,
            pseudonym_key=key,
        )
        for key in (None, KEY.encode())
    )
    names = {pseudonym(user, KEY.encode()): user for user in plain.info.user_ids}
    assert set(names) == set(hidden.info.user_ids)
    assert hidden.info.item_ids == plain.info.item_ids

    def known(data, user):
        rows = slice(data.offsets[user], data.offsets[user + 1])
        return (
            data.items[rows].tolist(),
            data.times[rows].tolist(),
            data.user_features.dense()[user].tolist(),
        )

    for place, name in enumerate(hidden.info.user_ids):
        assert known(hidden, place) == known(plain, plain.info.user_ids.index(names[name]))


def test_no_file_of_a_run_knows_an_id(tmp_path, monkeypatch):
    made = tables()
    secret = {user: f"person-{n:03d}-of-the-log" for n, user in enumerate(made["users"]["user_id"])}
    for name in ("log", "users"):
        made[name] = made[name].with_columns(pl.col("user_id").replace(secret))
    write_tables(tmp_path)
    for name in ("log", "users"):
        made[name].write_csv(tmp_path / f"{name}.csv")
    config = small_config(tmp_path)
    config = msgspec.structs.replace(
        config, data=msgspec.structs.replace(config.data, pseudonym_key="DISTILREC_PSEUDONYM_KEY")
    )
    with pytest.raises(
        ConfigError, match="should hold the key of the pseudonyms, and has 0 bytes"
    ) as caught:
        runs.prepare(config, tmp_path / "run")
    assert "openssl rand" in caught.value.fix
    monkeypatch.setenv("DISTILREC_PSEUDONYM_KEY", KEY)
    runs.run_all(config, tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert b"person-" not in content and KEY.encode() not in content, path
    # Who has the key finds the person.
    user = secret["u5"]
    told = subprocess.run(
        [sys.executable, "-m", "distilrec.cli", "pseudonym", "--user-id", user],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    recommender = load(tmp_path / "run" / "bundle")
    assert recommender.knows_user(told.stdout.strip())
    assert not recommender.knows_user(user)


def test_old_rows_are_not_kept():
    days = np.array([1, 20, 40, 1, 2, 400])
    log = pl.DataFrame(
        {
            "user_id": ["a", "a", "a", "b", "b", "b"],
            "item_id": ["x", "y", "z", "x", "y", "z"],
            "timestamp": time.time() - days * 86_400,
        }
    )
    data = prepare_dataset(log, Schema(timestamp="timestamp"), cleaning=Cleaning(max_age_days=30))
    assert data.info.cleaning_report.dropped["older than max_age_days"] == 2
    assert len(data.items) == 4
