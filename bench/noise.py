"""What noise in the log costs, with and without distillation and denoising.

    python bench/noise.py [--config examples/films-and-trust/recipe.toml] [--seeds 3]
        [--folder runs/noise]

At each rate that share of the events that become training rows gets another item, drawn uniformly
among those that the user has not had; validation and test events stay as they are. Everything is
trained on the noisy log: a teacher, the student without distillation, the student with it, and the
student whose ground truth is left out for the events that its teacher expected least
(`distillation.denoise`). NDCG@10 of the test part, paired by user.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec import prepare_dataset
from distilrec.data.cleaning import clean_log
from distilrec.data.dataset import Dataset
from distilrec.data.readers import read_table
from distilrec.data.source import Source, Table
from distilrec.distill.distillation import distill_model
from distilrec.labels.extract import extract_labels
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Scorer, questions, rank
from distilrec.measure.statistics import bootstrap, paired_difference
from distilrec.networks.sequence import TorchScorer
from distilrec.runs.config import RunConfig, read_config
from distilrec.runs.teachers import chosen_teacher
from distilrec.teachers.build import make_teacher, with_closed_form
from distilrec.training.trained import TrainedModel, load_model, save_model, train_model

RESULTS = Path(__file__).parent / "results"
RATES = (0.0, 0.1, 0.2, 0.4)
DENOISE = (0.1, 0.2, 0.4)  # chosen on validation, for each rate
TEACHER, ALONE, STUDENT, DENOISED = (
    "teacher",
    "student without distillation",
    "student",
    "student, denoised",
)


def clean(config: RunConfig, folder: Path) -> pl.DataFrame:
    """Return the log of a configuration as cleaning leaves it: sorted by user and time."""
    assert config.data.interactions is not None
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(Table(config.data.interactions, config.data.columns), config.data.schema)
    parts = clean_log(source.log.open(folder), source, config.cleaning, folder)
    return pl.concat([parts.part(number) for number in range(len(parts.parts))])


def noisy(log: pl.DataFrame, rate: float, seed: int) -> pl.DataFrame:
    """Return the log with other items in a share of the rows that training will see.

    The last two rows of each user stay as they are.
    """
    rng = np.random.default_rng(seed)
    items = log["item_id"].unique().sort().to_list()
    position = pl.int_range(pl.len()).over("user_id")
    chosen = (log.select(position < pl.len().over("user_id") - 2).to_series().to_numpy()) & (
        rng.random(log.height) < rate
    )
    had = {user: set(past) for user, past in log.group_by("user_id").agg("item_id").iter_rows()}
    replaced = log["item_id"].to_list()
    for row in np.flatnonzero(chosen):
        past = had[log["user_id"][int(row)]]
        item = items[rng.integers(len(items))]
        while item in past:
            item = items[rng.integers(len(items))]
        past.add(item)
        replaced[row] = item
    return log.with_columns(item_id=pl.Series(replaced))


def prepared(config: RunConfig, log: pl.DataFrame) -> Dataset:
    """Return the noisy log with the side tables of the configuration."""
    columns = {
        "user_id": "user_id",
        "item_id": "item_id",
        "timestamp": "timestamp",
        "event_type": "event_type",
    }
    schema = msgspec.structs.replace(config.data.schema, **columns, weight="weight")
    tables = [
        None if path is None else read_table(path)
        for path in (config.data.users, config.data.items)
    ]
    return prepare_dataset(
        log, schema, users=tables[0], items=tables[1], name=config.data.name, split=config.split
    )


class Rate:
    """One rate of noise: the noisy data set, the teacher that learned from it, and its labels."""

    def __init__(self, config: RunConfig, log: pl.DataFrame, rate: float, folder: Path) -> None:
        self._config, self._folder = config, folder / f"{config.data.name}-{rate:g}"
        self.data = prepared(config, noisy(log, rate, seed=1))
        teacher, training = chosen_teacher(config, self.data.info)
        self.teacher = make_teacher(
            with_closed_form(teacher, config.closed_form, self.data.info.warm_items),
            self.data,
            training,
            self._folder / "teacher",
            seed=0,
        )
        self._labels = extract_labels(
            self.teacher, self.data, self._folder / "labels", config.labels, seed=0
        )
        self._test = questions(self.data, "test")

    def student(self, name: str, seed: int, denoise: float | None) -> TrainedModel:
        """Return a student, trained on first use; denoise None: without distillation."""
        folder, config = self._folder / f"{name}-{seed}", self._config
        if not (folder / "model.json").is_file():
            if denoise is None:
                trained = train_model(config.student, self.data, config.student_training, seed=seed)
            else:
                how = msgspec.structs.replace(config.distillation, denoise=denoise)
                trained = distill_model(
                    config.student, self.data, self._labels, config.student_training, how, seed=seed
                )
            save_model(trained, folder)
        return load_model(folder, self.data)

    def quality(self, scorers: Sequence[Scorer]) -> NDArray[np.float64]:
        """Return NDCG@10 of the test part, (scorers, users)."""
        return np.stack([ndcg(rank(scorer, self._test), 10) for scorer in scorers])

    def students(self, name: str, seeds: int, denoise: float | None) -> NDArray[np.float64]:
        """Return the quality of a student with several seeds, (seeds, users)."""
        trained = [self.student(name, seed, denoise) for seed in range(seeds)]
        return self.quality([TorchScorer(student.model) for student in trained])


def measure(work: Rate, rate: float, seeds: int) -> tuple[str, dict[str, object]]:
    """Return the row of the table for one rate, and its figures."""
    tried = {share: work.student(f"denoised-{share:g}", 0, share).best_ndcg for share in DENOISE}
    best = max(DENOISE, key=lambda share: tried[share])
    values = {
        TEACHER: work.quality([work.teacher]),
        ALONE: work.students("alone", seeds, None),
        STUDENT: work.students("student", seeds, 0.0),
        DENOISED: work.students(f"denoised-{best:g}", seeds, best),
    }
    gains = [
        paired_difference("ndcg@10", a, values[a], b, values[b]).interval
        for a, b in ((STUDENT, ALONE), (DENOISED, STUDENT))
    ]
    shown = [f"{g.mean:+.4f} [{g.low:+.4f}, {g.high:+.4f}]" for g in gains]
    cells = [f"{bootstrap(by_seed)}" for by_seed in values.values()]
    row = f"| {rate:.0%} | {' | '.join(cells)} ({best:g}) | {' | '.join(shown)} |"
    return row, {
        "rate": rate,
        "denoise": best,
        "validation_by_denoise": tried,
        "ndcg_by_seed": {name: by_seed.mean(1).tolist() for name, by_seed in values.items()},
        "gains": msgspec.to_builtins(gains),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("examples/films-and-trust/recipe.toml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/noise"))
    arguments = parser.parse_args()
    config = read_config(arguments.config)
    log = clean(config, arguments.folder / "clean")
    lines = [
        f"{config.data.name}, test part, {arguments.seeds} seeds, one teacher for each rate",
        "",
        f"| noise | {TEACHER} | {ALONE} | {STUDENT} | {DENOISED} (share left out) | student minus "
        "that without distillation "
        "| denoised minus student |",
        "|---|---|---|---|---|---|---|",
    ]
    records = []
    for rate in RATES:
        row, record = measure(Rate(config, log, rate, arguments.folder), rate, arguments.seeds)
        print(row, flush=True)
        lines.append(row)
        records.append(record)
    line = json.dumps({"bench": "noise", "dataset": config.data.name, "rows": records})
    print("\n".join(lines) + "\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"noise-{config.data.name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"noise-{config.data.name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
