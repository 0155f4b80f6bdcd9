"""A refresh each day, beside a full training and doing nothing, on a log that is cut into days.

    python bench/refresh.py [--config bench/ml-100k.toml] [--days 14] [--share 0.01]
        [--full-every 1] [--folder FOLDER]

--config is the recipe, with a public data set or with files; what a recipe in `examples/` makes its
tables of is read where these are missing. The log is cut in time: the newest days, each about this
share of all rows, come one after the other, and the run begins with what is before them; rows of
the same time stay together, and where two days would begin with the same time they are one. Each
day the models are asked about the test part of that day, the newest 5% of the log so far: the
refreshed bundle (`distilrec refresh`, which begins with that of the day before), the bundle of the
beginning ("nothing"), and each --full-every days a bundle that is trained from fresh weights on the
same data. Gate or not, each refresh counts.

The rates are paired by user, with 95% intervals; over all days together each user counts once, with
the mean of the days that ask the user. Seconds are those of a processor core that this process
used: of a refresh with its measurement, of a full training (data, teacher, labels, student, bundle)
without one. The share is that of the latest full training. Forgetting: what the refreshed bundle
gives, minus what that of the beginning gives, to the users of the test part whose training rows are
those of the beginning: both have learned the same about them. Drift: the mean cosine between the
vectors of an item in the student of this day and in that of the day before.

Resumes where it was interrupted, day by day; a refresh or a training that was interrupted is begun
again. Prints a table and one JSON line, and writes both into `bench/results/` (`refresh-NAME.md`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from quality import RESULTS, make_tables

from distilrec import runs
from distilrec.bundle.format import read_bundle
from distilrec.data.dataset import Dataset
from distilrec.data.readers import read_table
from distilrec.data.splits import Split
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.errors import ConfigError, DataError
from distilrec.files import read_json, write_json
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import bootstrap, paired_difference
from distilrec.report.earlier import EarlierBundle
from distilrec.runs.config import RunConfig, read_config
from distilrec.runs.folder import read_costs
from distilrec.runs.generations import Generations
from distilrec.runs.refreshing import changed_users, refresh
from distilrec.runs.source import name_of, with_files

REFRESHED, FULL, NOTHING = "refreshed", "full", "nothing"
TARGET_SHARE, TARGET_LOSS = 0.10, 0.002
Day = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "ml-100k.toml")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--full-every", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if min(arguments.days, arguments.full_every) < 1 or not 0 < arguments.share < 1:
        parser.error("--days and --full-every are at least 1, --share is between 0 and 1")
    torch.set_num_threads(1)
    config = read_config(arguments.config)
    name = name_of(config.data)
    folder = (arguments.folder or Path("runs") / "refresh" / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = _with_files(config)
    make_tables(config)
    config, days = _cut(config, folder, arguments.days, arguments.share)
    beginning = _trained(config, folder / "run")
    found: list[Day] = []
    for day, rows in enumerate(days, start=1):
        full = day % arguments.full_every == 0
        path = folder / f"day-{day}.json"
        if not path.is_file():
            write_json(path, _day(folder, day, rows, full=full))
        found.append(read_json(path, Day, error=DataError, fix=f"delete {path}"))
        print(json.dumps({k: v for k, v in found[-1].items() if k != "users"}), flush=True)
    _write_results(name, found, beginning)


def _with_files(config: RunConfig) -> RunConfig:
    """Return a recipe with the files of its data set, and with a split in time."""
    split = Split("global-time", validation_share=0.05, test_share=0.05)
    return msgspec.structs.replace(config, data=with_files(config.data, print), split=split)


def _cut(
    config: RunConfig, folder: Path, days: int, share: float
) -> tuple[RunConfig, list[pl.DataFrame]]:
    """Write the log without its newest days; return the recipe with it, and these days."""
    column = config.data.schema.timestamp
    if column is None:
        raise ConfigError(
            "a log without times cannot be cut into days", fix="choose one with a timestamp column"
        )
    log = read_table(Path(str(config.data.interactions))).sort(column, maintain_order=True)
    first = log[column].search_sorted(log[column], "left")  # of the rows with the same time
    size = int(log.height * share)
    cuts = [int(first[log.height - day * size]) for day in range(days, 0, -1)] + [log.height]
    path = folder / "log.parquet"
    log.head(cuts[0]).write_parquet(path)
    data = msgspec.structs.replace(config.data, interactions=str(path), name=name_of(config.data))
    return (
        msgspec.structs.replace(config, data=data),
        [log.slice(a, b - a) for a, b in pairwise(cuts) if a < b],
    )


def _trained(config: RunConfig, folder: Path) -> float:
    """Train a run as a whole, without the student that is not distilled, and return the seconds."""
    path = folder / "seconds.json"
    if not path.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        run, dataset = runs.prepare(config, folder, runs.Lines())
        runs.train_teacher(run, dataset)
        runs.distill_student(run, dataset)
        runs.export(run, dataset)
        write_json(path, time.process_time() - began)
    return read_json(path, float, error=DataError, fix=f"delete {path}")


def _refreshed(folder: Path, day: int, rows: pl.DataFrame) -> float:
    """Make the generation of a day, and return the seconds."""
    generations, path = Generations(folder / "run"), folder / f"refreshed-{day}.json"
    if not path.is_file():
        if generations.current() >= day:
            generations.switch(day - 1)
        shutil.rmtree(generations.folder(day), ignore_errors=True)
        began = time.process_time()
        refresh(folder / "run", rows, progress=runs.Lines())
        seconds = time.process_time() - began
        generations.switch(day)
        write_json(path, seconds)
    return read_json(path, float, error=DataError, fix=f"delete {path}")


def _day(folder: Path, day: int, rows: pl.DataFrame, *, full: bool) -> Day:
    """Return what the models give on the test part of a day, and what they cost. users: by id, what
    each model gives, and whether the training rows are those of the beginning.
    """
    run = folder / "run"
    seconds = {REFRESHED: _refreshed(folder, day, rows)}
    generation, before = (Generations(run).folder(number) for number in (day, day - 1))
    bundles = {REFRESHED: generation / "bundle", NOTHING: run / "bundle"}
    if full:
        seconds[FULL] = _trained(runs.open_run(generation).config, folder / f"full-{day}")
        bundles[FULL] = folder / f"full-{day}" / "bundle"
    dataset = runs.open_data(runs.open_run(generation))
    asked = questions(dataset, "test")
    values = {
        name: ndcg(rank(EarlierBundle(bundle, dataset), asked), 10)
        for name, bundle in bundles.items()
    }
    old = _as_before(runs.open_data(runs.open_run(run)), dataset)[asked.histories.users]
    return {
        "day": day,
        "rows": rows.height,
        "trained users": json.loads((generation / "refresh.json").read_text())["users"],
        "seconds": seconds,
        "stages": {cost.stage: round(cost.seconds, 2) for cost in read_costs(generation)},
        "ndcg@10": {name: _interval(value) for name, value in values.items()},
        "drift": _cosine(before / "bundle", generation / "bundle"),
        "users": {
            dataset.info.user_ids[user]: {
                "old": bool(old[place]),
                **{name: float(value[place]) for name, value in values.items()},
            }
            for place, user in enumerate(asked.histories.users)
        },
    }


def _as_before(was: Dataset, now: Dataset) -> NDArray[np.bool_]:
    """Return whose training rows are those of the beginning, of which there are some, (users,)."""
    same: NDArray[np.bool_] = ~changed_users(was, now) & (now.train_end > now.offsets[:-1])
    return same


def _cosine(before: Path, after: Path) -> float:
    """Return the mean cosine between the vectors of the items that two bundles have."""
    bundles = [read_bundle(folder) for folder in (before, after)]
    vectors = [make_runtime(bundle).item_vectors(slice(None)) for bundle in bundles]
    places = {item: place for place, item in enumerate(bundles[0].catalogue.ids)}
    both = [
        (places[item], place)
        for place, item in enumerate(bundles[1].catalogue.ids)
        if item in places
    ]
    a, b = (table[list(rows)] for table, rows in zip(vectors, zip(*both, strict=True), strict=True))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.einsum("id,id->i", a, b)[lengths > 0] / lengths[lengths > 0]).mean())


def _interval(values: NDArray[np.float64]) -> list[float]:
    found = bootstrap(values[None])
    return [found.mean, found.low, found.high]


def _difference(days: list[Day], name: str, *, old: bool = False) -> tuple[list[float], int] | None:
    """Return NDCG@10 of the refreshed bundle minus that of another one with its interval, over all
    these days that have both, and of how many users; None where there is no such user.

    old: only users whose training rows are those of the beginning.
    """
    by_user: dict[str, list[tuple[float, float]]] = {}
    for day in days:
        for user, values in day["users"].items():
            if name in values and (values["old"] or not old):
                by_user.setdefault(user, []).append((values[REFRESHED], values[name]))
    if not by_user:
        return None
    a, b = np.array([np.mean(pairs, axis=0) for pairs in by_user.values()]).T
    found = paired_difference("ndcg@10", REFRESHED, a[None], name, b[None]).interval
    return [found.mean, found.low, found.high], len(by_user)


def _shares(found: list[Day], beginning: float) -> list[float]:
    """Return what each refresh cost, as a share of the latest full training."""
    shares, full = [], beginning
    for day in found:
        full = day["seconds"].get(FULL, full)
        shares.append(day["seconds"][REFRESHED] / full)
    return shares


def _write_results(name: str, found: list[Day], beginning: float) -> None:
    shares = _shares(found, beginning)
    lines = [
        f"{name}, {len(found)} days of about {found[0]['rows']:,} rows, NDCG@10 on the newest 5% "
        f"of the log of each day; the training of the beginning took {beginning:.0f} s",
        "",
        "| day | users | trained | refreshed | full | nothing | refreshed - full | refreshed - "
        "nothing | forgetting (users) | drift | s of the refresh | of a full training | share |",
        "|" + "---|" * 13,
    ]
    for day, share in zip(found, shares, strict=True):
        quality = [
            f"{day['ndcg@10'][of][0]:.4f}" if of in day["ndcg@10"] else ""
            for of in (REFRESHED, FULL, NOTHING)
        ]
        seconds = day["seconds"]
        cells = [
            str(day["day"]),
            f"{len(day['users']):,}",
            f"{day['trained users']:,}",
            *quality,
            _text(_difference([day], FULL)),
            _text(_difference([day], NOTHING)),
            _text(_difference([day], NOTHING, old=True), users=True),
            f"{day['drift']:.4f}",
            f"{seconds[REFRESHED]:.0f}",
            f"{seconds[FULL]:.0f}" if FULL in seconds else "",
            f"{share:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    full = _difference(found, FULL)
    together = {
        "refreshed - full": full,
        "refreshed - nothing": _difference(found, NOTHING),
        "forgetting, refreshed - nothing": _difference(found, NOTHING, old=True),
        "forgetting, refreshed - full": _difference(found, FULL, old=True),
    }
    median = float(np.median(shares))
    lines += [
        "",
        "| all days together | NDCG@10 (users) |",
        "|---|---|",
        *(f"| {what} | {_text(value, users=True)} |" for what, value in together.items()),
        "",
        f"A refresh costs {median:.1%} of a full training (median), target at most "
        f"{TARGET_SHARE:.0%}: {'met' if median <= TARGET_SHARE else 'missed'}.",
    ]
    if full is not None:
        met = full[0][1] >= -TARGET_LOSS
        lines.append(
            f"The lower end of refreshed - full is {full[0][1]:+.4f}, target at least "
            f"-{TARGET_LOSS}: {'met' if met else 'missed'}."
        )
    table = "\n".join(lines)
    line = json.dumps(
        {
            "bench": "refresh",
            "dataset": name,
            "seconds_of_the_beginning": beginning,
            "share": median,
            "together": together,
            "days": [{**day, "users": len(day["users"])} for day in found],
        }
    )
    print(f"{table}\n\n{line}")
    (RESULTS / f"refresh-{name}.md").write_text(table + "\n")
    (RESULTS / f"refresh-{name}.json").write_text(line + "\n")


def _text(found: tuple[list[float], int] | None, *, users: bool = False) -> str:
    if found is None:
        return ""
    values, count = found
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*values) + (f" ({count:,})" if users else "")


if __name__ == "__main__":
    main()
