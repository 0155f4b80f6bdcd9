"""A refresh each day, beside a full training each day and doing nothing, on ML-100K in days.

    python bench/refresh.py [--config bench/ml-100k.toml] [--days 4] [--share 0.02]
        [--folder FOLDER]

The log is cut in time: the newest days, each this share of all rows, come one after the other; the
run begins with what is before them. Each day all three models are asked about the test part of that
day, the newest rows of the log so far: the refreshed bundle (`distilrec refresh`, which begins with
that of the day before), one that is trained from fresh weights on the same data, and the bundle of
the beginning. Gate or not, each refresh counts. Seconds are those of one core: of a refresh all of
it with its measurement, of a full training without one. The rates are paired by user, with 95%
intervals. Resumes where it was interrupted, day by day. Prints a table and one JSON line, and
writes both into `bench/results/` (`refresh-CONFIG.md`).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from quality import RESULTS

from distilrec import runs
from distilrec.data.fetch import DATASETS, fetch_dataset
from distilrec.data.splits import Split
from distilrec.errors import DataError
from distilrec.files import read_json, write_json
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import bootstrap, paired_difference
from distilrec.report.earlier import EarlierBundle
from distilrec.runs.config import RunConfig, read_config
from distilrec.runs.generations import Generations
from distilrec.runs.refreshing import refresh

NAME = "ml-100k"
MODELS = ("refreshed", "full", "nothing")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "ml-100k.toml")
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--folder", type=Path, default=Path("runs/refresh"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    days = _cut(folder, arguments.days, arguments.share)
    run = folder / "run"
    beginning = _trained(_config(arguments.config, folder), run)
    found = []
    for day, rows in enumerate(days, start=1):
        path = folder / f"day-{day}.json"
        if not path.is_file():
            write_json(path, _day(run, folder, day, rows))
        found.append(read_json(path, dict[str, Any], error=DataError, fix=f"delete {path}"))
        print(json.dumps(found[-1]), flush=True)
    _write_results(arguments.config.stem, found, beginning)


def _cut(folder: Path, days: int, share: float) -> list[pl.DataFrame]:
    """Write the log without its newest days, and return these."""
    log = pl.read_csv(fetch_dataset(NAME) / "interactions.csv").sort(
        "timestamp", maintain_order=True
    )
    size = int(log.height * share)
    first = log.height - days * size
    log.head(first).write_csv(folder / "log.csv")
    return [log.slice(first + day * size, size) for day in range(days)]


def _config(path: Path, folder: Path) -> RunConfig:
    """Return the recipe, on the log without its newest days and with a split in time."""
    config, tables = read_config(path), fetch_dataset(NAME)
    data = msgspec.structs.replace(
        config.data,
        dataset=None,
        interactions=str(folder / "log.csv"),
        users=str(tables / "users.csv"),
        items=str(tables / "items.csv"),
        schema=DATASETS[NAME].schema,
        name=NAME,
    )
    split = Split("global-time", validation_share=0.05, test_share=0.05)
    return msgspec.structs.replace(config, data=data, split=split)


def _trained(config: RunConfig, folder: Path) -> float:
    """Train a run as a whole, without the student that is not distilled, and return the seconds."""
    path = folder / "seconds.json"
    if not path.is_file():
        began = time.perf_counter()
        run, dataset = runs.prepare(config, folder, runs.Lines())
        runs.train_teacher(run, dataset)
        runs.distill_student(run, dataset)
        runs.export(run, dataset)
        write_json(path, time.perf_counter() - began)
    return read_json(path, float, error=DataError, fix=f"delete {path}")


def _day(run: Path, folder: Path, day: int, rows: pl.DataFrame) -> dict[str, Any]:
    """Return what the three models give on the test part of a day, and what they cost."""
    if Generations(run).current() < day:
        done = refresh(run, rows, progress=runs.Lines())
        assert done is not None
        Generations(run).switch(day)
    generation = Generations(run).folder(day)
    about = json.loads((generation / "refresh.json").read_text())
    full = _trained(runs.open_run(generation).config, folder / f"full-{day}")
    dataset = runs.open_data(runs.open_run(generation))
    asked = questions(dataset, "test")
    bundles = (generation / "bundle", folder / f"full-{day}" / "bundle", run / "bundle")
    values = {
        name: ndcg(rank(EarlierBundle(bundle, dataset), asked), 10)
        for name, bundle in zip(MODELS, bundles, strict=True)
    }
    return {
        "day": day,
        "rows": rows.height,
        "users": len(asked.histories),
        "trained users": about["users"],
        "seconds": {"refreshed": about["seconds"], "full": full, "nothing": 0.0},
        "ndcg@10": {name: _interval(value) for name, value in values.items()},
        **{
            f"refreshed - {name}": _difference(values["refreshed"], values[name], name)
            for name in MODELS[1:]
        },
    }


def _interval(values: NDArray[np.float64]) -> list[float]:
    found = bootstrap(values[None])
    return [found.mean, found.low, found.high]


def _difference(a: NDArray[np.float64], b: NDArray[np.float64], name: str) -> list[float]:
    found = paired_difference("ndcg@10", "refreshed", a[None], name, b[None]).interval
    return [found.mean, found.low, found.high]


def _write_results(name: str, found: list[dict[str, Any]], beginning: float) -> None:
    lines = [
        f"{NAME}, {len(found)} days of {found[0]['rows']:,} rows, NDCG@10 on the newest 5% of the "
        f"log of each day; the training of the beginning took {beginning:.0f} s",
        "",
        "| day | users | refreshed | full | nothing | refreshed - full | refreshed - nothing | "
        "seconds of the refresh | of a full training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for day in found:
        quality = " | ".join(f"{day['ndcg@10'][name][0]:.4f}" for name in MODELS)
        differences = " | ".join(
            "{:+.4f} [{:+.4f}, {:+.4f}]".format(*day[f"refreshed - {name}"]) for name in MODELS[1:]
        )
        seconds = day["seconds"]
        lines.append(
            f"| {day['day']} | {day['users']:,} | {quality} | {differences} | "
            f"{seconds['refreshed']:.0f} | {seconds['full']:.0f} |"
        )
    table = "\n".join(lines)
    print(table)
    (RESULTS / f"refresh-{name}.md").write_text(table + "\n")
    (RESULTS / f"refresh-{name}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
