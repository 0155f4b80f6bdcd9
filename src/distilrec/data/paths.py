"""The files that a path stands for: one file, a folder with its partitions, or a pattern.

A partitioned folder has folders called `name=value` (Hive, Spark, Delta and polars write them):
each is a column with one value for all files below it, as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from urllib.parse import unquote

from distilrec.data.lines import COMPRESSED
from distilrec.errors import ConfigError, FileMissingError, NotEnoughDataError

PARQUET = {".parquet", ".pq"}
LINES = {".jsonl", ".ndjson"}
SEPARATED = {".csv", ".tsv", ".txt"}
ATOMIC = {".inter", ".user", ".item"}
_KNOWN = PARQUET | LINES | SEPARATED | ATOMIC | {".dat"}
DELTA_LOG = "_delta_log"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

Partition = tuple[tuple[str, str | None], ...]
"""Names and values of the columns that the folders of a file say."""


@dataclass(frozen=True)
class Files:
    """The files of a table, in the order of their names.

    partitions: what the folders of each file say; notes: what a report should say.
    """

    paths: tuple[Path, ...]
    partitions: tuple[Partition, ...]
    notes: tuple[str, ...] = ()


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the format: that of the unpacked file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def find_files(path: Path) -> Files:
    """Return the files that a path stands for. Raises FileMissingError, NotEnoughDataError for an
    empty file, and ConfigError for an unknown file type, and for several.
    """
    skipped: list[Path] = []
    if path.is_file():
        files, root = [path], path.parent
    elif path.is_dir():
        refuse_delta(path, (path / DELTA_LOG).is_dir())
        files, root = sorted(_in_folder(path, skipped)), path
    else:
        files = sorted(
            found for name in glob(str(path), recursive=True) if (found := Path(name)).is_file()
        )
        root = _before_pattern(path)
    if not files:
        raise FileMissingError(
            f"{path} does not exist or is not a file, and no files match it",
            fix="check the path; it is relative to where you are",
            file=str(path),
        )
    for file in files:
        _check(file)
    if len({suffix_of(file) for file in files}) > 1:
        raise ConfigError(
            f"{path} holds files of several types: "
            f"{', '.join(sorted({suffix_of(file) for file in files}))}",
            fix="name the files by a pattern, such as data/*.parquet",
            file=str(path),
        )
    partitions = tuple(_partition(file.relative_to(root)) for file in files)
    return Files(tuple(files), partitions, _notes(path, skipped))


def refuse_delta(path: object, is_delta: bool) -> None:
    """Raise ConfigError for the folder of a Delta table, whose files may be of earlier versions."""
    if is_delta:
        raise ConfigError(
            f"{path} is a Delta table: its folder holds rows that are deleted, too",
            fix=f'write {{ kind = "delta", table = "{path}" }} in place of the path',
            file=str(path),
        )


def name_of_path(path: Path) -> str:
    """Return what a table is called: its file without the suffix, or the folder of a pattern."""
    return (_before_pattern(path).name or "log") if has_magic(str(path)) else path.stem


def _in_folder(folder: Path, skipped: list[Path]) -> Iterator[Path]:
    """Yield the files of a folder and of its partitions. skipped: gets its other folders."""
    for found in folder.iterdir():
        if found.name.startswith((".", "_")):
            continue
        if not found.is_dir():
            if suffix_of(found) in _KNOWN:
                yield found
        elif "=" in found.name.strip("="):
            yield from _in_folder(found, skipped)
        else:
            skipped.append(found)


def _before_pattern(path: Path) -> Path:
    """Return the folders of a pattern before its first part with a wildcard."""
    parts = path.parts
    first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts) - 1)
    return Path(*parts[:first])


def _partition(path: Path) -> Partition:
    """Return the columns that the folders of a file say."""
    said = [part.split("=", 1) for part in path.parts[:-1] if "=" in part.strip("=")]
    return tuple(
        (unquote(name), None if value == _NO_VALUE else unquote(value)) for name, value in said
    )


def _notes(path: Path, skipped: list[Path]) -> tuple[str, ...]:
    if not skipped:
        return ()
    return (
        f"{path}: {len(skipped):,} folders in it are not read, such as {min(skipped).name}: they "
        "are not called name=value (a pattern such as **/*.parquet reads all)",
    )


def _check(file: Path) -> None:
    if file.stat().st_size == 0:
        raise NotEnoughDataError(
            f"{file} is empty", fix="give a file with at least a few rows", file=str(file)
        )
    suffix = suffix_of(file)
    if suffix not in _KNOWN or (suffix in PARQUET and file.suffix.lower() in COMPRESSED):
        raise ConfigError(
            f"{file}: unknown file type {file.suffix!r}",
            fix="use .csv, .tsv, .txt, .dat, .jsonl, .inter, .user, .item (each also with .gz "
            "or .zst) or .parquet",
            file=str(file),
        )
