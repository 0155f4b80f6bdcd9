"""The list of erased users: every line is found in the log, or named."""

from __future__ import annotations

import shutil
import subprocess
import sys

import msgspec
import polars as pl
import pytest

from distilrec import load, runs
from distilrec.data.checks import DataCheck
from distilrec.data.dataset import load_dataset
from distilrec.data.erased import ErasedUsers, listed, read_erased_users
from distilrec.data.preparation import prepare_dataset
from distilrec.data.pseudonyms import pseudonym
from distilrec.errors import DataError, InvalidIdError, InvalidValueError, UnknownUserError
from tests.small_run import SCHEMA, small_config, tables, write_tables

KEY = "DISTILREC_PSEUDONYM_KEY"


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "distilrec.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def prepared(folder, content: bytes, *, must_exist=True, pseudonym_key=None):
    """What `prepare` makes of the small log and a list of erased users, and what it says."""
    write_tables(folder)
    (folder / "erased.txt").write_bytes(content)
    config = small_config(folder)
    data = msgspec.structs.replace(
        config.data,
        erased_users=str(folder / "erased.txt"),
        erased_users_must_exist=must_exist,
        pseudonym_key=pseudonym_key,
    )
    _, dataset = runs.prepare(msgspec.structs.replace(config, data=data), folder / "run")
    return dataset


@pytest.mark.parametrize(
    "content",
    [
        b"u1\nu2\n",
        b"\xef\xbb\xbfu1\nu2\n",
        b"u1\r\nu2\r\n\r\n",
        b"u1\ru2",
        b'"u1"\n"u2"\n',
        b"  u1 \n\xc2\xa0u2\n\n",
        "u1\nu2\n".encode("utf-16"),
        b"\xfe\xff" + "u1\nu2\n".encode("utf-16-be"),
        "u1\nu2\n".encode("utf-32"),
        b"u1\nu2\nu1\n",
    ],
    ids=[
        "plain", "bom", "windows", "old mac", "quotes", "spaces", "utf-16", "utf-16 big endian", "utf-32", "twice"
    ],
)  # fmt: skip
def test_every_way_to_write_a_list_erases_the_same_users(tmp_path, content):
    dataset = prepared(tmp_path, content)
    assert {"u1", "u2"}.isdisjoint(dataset.info.user_ids)
    assert dataset.users == 58
    log = tables()["log"]
    rows = log.filter(pl.col("user_id").is_in(["u1", "u2"])).height
    assert dataset.info.cleaning_report.dropped["erased user"] == rows
    assert any(
        note.startswith("2 of 2 users to be erased have rows in the log")
        for note in dataset.info.notes
    )


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (
            b"u1\nRen\xe9\n",
            DataError,
            r"erased.txt, line 2: byte 0xe9 is not UTF-8\n.*save the list as UTF-8",
        ),
        (b"\xef\xbb\xbfu1\nRen\xe9\n", DataError, "erased.txt, line 2: byte 0xe9 is not UTF-8"),
        (
            "u1\nu2".encode("utf-16") + b"\x00",
            DataError,
            r"erased.txt, line 2: byte .* is not UTF-16",
        ),
        (
            "u1\nu2".encode("utf-16-le"),
            InvalidValueError,
            r"erased.txt, line 1: .*holds the character U\+0000",
        ),
        (b"u1\nu2\tx\n", InvalidValueError, r"erased.txt, line 2: .*holds the character U\+0009"),
        (
            b'u1\n"u2\n',
            InvalidValueError,
            r"erased.txt, line 2: .* begins with a quote that does not end",
        ),
        (b"u1\n" + b"x" * 300, InvalidValueError, r"erased.txt, line 2: .*has 300 characters"),
        (
            b"u1\nU2\n",
            UnknownUserError,
            r"1 of the 2 ids in .*erased.txt match no user of the log: 'U2'\n",
        ),
        (
            b"user_id\nu1\n",
            UnknownUserError,
            r"1 of the 2 ids .*: 'user_id'\n.*erased_users_must_exist = false",
        ),
        (b"u1,u2\n", UnknownUserError, r"1 of the 1 ids .*: 'u1,u2'\n"),
        (
            b"\n".join(b"a%d" % n for n in range(9)),
            UnknownUserError,
            r"9 of the 9 ids .*: 'a0', .*'a4' …\n",
        ),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(tmp_path, content, error, said):
    with pytest.raises(error, match=said):
        prepared(tmp_path, content)


def test_users_may_be_gone_from_the_log_where_it_is_said_so(tmp_path):
    dataset = prepared(tmp_path, b"u1\ngone\n", must_exist=False)
    assert "u1" not in dataset.info.user_ids
    assert any(
        note.startswith("1 of 2 users to be erased have rows") for note in dataset.info.notes
    )


@pytest.mark.slow
def test_whole_numbers_are_one_id_in_log_and_list(tmp_path):
    rows = [(user, (user + n) % 5, 100 * user + n) for user in range(1, 7) for n in range(5)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log.write_csv(tmp_path / "log.csv")
    (tmp_path / "list.txt").write_text('2.0\n"3"\n')
    (tmp_path / "my.toml").write_text(
        '[data]\ninteractions = "log.csv"\nerased_users = "list.txt"\n[data.schema]\ntimestamp = "timestamp"\n'
    )
    done = command("prepare", "--config", "my.toml", "--run", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 dropped: erased user" in done.stderr
    assert sorted(load_dataset(tmp_path / "run" / "data").info.user_ids) == ["1", "4", "5", "6"]
    (tmp_path / "list.txt").write_text("2\n7\n")
    failed = command("prepare", "--config", "my.toml", "--run", "run", cwd=tmp_path)
    assert failed.returncode == 2
    assert (
        "error [user_unknown]" in failed.stderr and "match no user of the log: '7'" in failed.stderr
    )
    assert "Traceback" not in failed.stderr


def test_with_pseudonyms_a_line_is_an_id_or_a_pseudonym(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "0123456789abcdef")
    name = pseudonym("u2", b"0123456789abcdef")
    dataset = prepared(tmp_path, f"u1\n{name}\n".encode(), pseudonym_key=KEY)
    assert dataset.users == 58 and name not in dataset.info.user_ids
    assert any(note.startswith("2 of 2 users to be erased") for note in dataset.info.notes)
    with pytest.raises(UnknownUserError, match="'nobody'"):
        prepared(tmp_path, b"u1\nnobody\n", pseudonym_key=KEY)


def test_users_given_from_python():
    made = tables()
    features = {"users": made["users"], "items": made["items"]}
    dataset = prepare_dataset(made["log"], SCHEMA, **features, erased_users=["u1", " u2"])
    assert dataset.users == 58
    with pytest.raises(UnknownUserError, match="'nobody'"):
        prepare_dataset(made["log"], SCHEMA, **features, erased_users=["nobody"])
    with pytest.raises(InvalidIdError, match="erased user"):
        prepare_dataset(made["log"], SCHEMA, **features, erased_users=["a\nb"])
    dataset = prepare_dataset(
        made["log"], SCHEMA, **features, erased_users=ErasedUsers(others=("nobody", "u3"))
    )
    assert dataset.users == 59


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, b"a key of sixteen bytes or more"])
def test_an_erased_user_whose_rows_break_a_check_is_a_user_of_the_log(key):
    made = tables()
    dataset = prepare_dataset(
        made["log"],
        SCHEMA,
        users=made["users"],
        items=made["items"],
        checks=[DataCheck("user_id", pattern="u([02-9]|1.).*")],
        erased_users=["u1", "u2"],
        pseudonym_key=key,
    )
    assert dataset.users == 58
    rows = {user: made["log"].filter(pl.col("user_id") == user).height for user in ("u1", "u2")}
    dropped = dataset.info.cleaning_report.dropped
    assert dropped["erased user"] == rows["u2"]
    assert dropped["check that user_id matches u([02-9]|1.).*"] == rows["u1"]
    assert "2 of 2 users to be erased have rows in the log, which are left out" in (
        dataset.info.notes
    )


def test_a_list_is_read_as_it_was_written(tmp_path):
    users = ("u1", '"quoted"', 'a "b"', '"', "é", "1,2", "#x")
    (tmp_path / "list").write_bytes(listed(users))
    assert read_erased_users(tmp_path / "list") == users


@pytest.mark.slow
def test_a_user_of_whom_a_run_knows_nothing_is_an_error(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    failed = command("forget", "--run", run, "--user-id", "nobody", cwd=tmp_path)
    assert failed.returncode == 2
    assert (
        "error [user_unknown]" in failed.stderr
        and "holds nothing about the user 'nobody'" in failed.stderr
    )
    assert not (run / "erased-users.txt").exists()
    opened = runs.open_run(run)
    with pytest.raises(InvalidIdError):
        runs.forget_user(opened, "u1\n")
    assert runs.forget_user(opened, "nobody", missing_ok=True) == []
    assert read_erased_users(run / "erased-users.txt") == ("nobody",)
    assert (run / "labels").is_dir()
    assert runs.forget_user(opened, " u1 ")
    assert runs.forget_user(opened, "u1") == []  # already forgotten
    assert read_erased_users(run / "erased-users.txt") == ("nobody", "u1")
    bundle = run / "bundle"
    failed = command("forget", "--bundle", bundle, "--user-id", "u1", cwd=tmp_path)
    assert failed.returncode == 2 and "error [user_unknown]" in failed.stderr
    fine = command("forget", "--bundle", bundle, "--user-id", "u1", "--missing-ok", cwd=tmp_path)
    assert fine.returncode == 0 and "holds nothing" in fine.stdout
    fine = command("forget", "--bundle", bundle, "--user-id", "u2", cwd=tmp_path)
    assert fine.returncode == 0 and not load(bundle).knows_user("u2")


def test_a_run_with_pseudonyms_forgets_by_id_and_by_pseudonym(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "0123456789abcdef")
    key = b"0123456789abcdef"
    prepared(tmp_path, b"u1\n", pseudonym_key=KEY)
    run = runs.open_run(tmp_path / "run")
    assert runs.forget_user(run, "u5")
    assert runs.forget_user(run, pseudonym("u6", key))
    runs.forget_user(run, "someone", missing_ok=True)
    names = tuple(pseudonym(user, key) for user in ("u5", "u6", "someone"))
    assert read_erased_users(tmp_path / "run" / "erased-users.txt") == names
    assert set(names).isdisjoint(load_dataset(tmp_path / "run" / "data").info.user_ids)
    # The list of the run names users that may be gone from the log.
    _, dataset = runs.prepare(run.config, run.folder)
    assert dataset.users == 57


@pytest.mark.slow
def test_seen_takes_an_id_as_every_door_does(finished_run, tmp_path):
    runs = tmp_path / "runs"  # of its own: beside the shared run other tests keep damaged ones
    shutil.copytree(finished_run.folder, runs / "one")
    whole = command("seen", "--user-id", " u1 ", "--runs", runs, cwd=tmp_path)
    assert (
        whole.returncode == 0 and load(finished_run.bundle).manifest.model_version in whole.stdout
    )
    broken = command("seen", "--user-id", "u1\n", "--runs", runs, cwd=tmp_path)
    assert broken.returncode == 2 and "error [id_invalid]" in broken.stderr
