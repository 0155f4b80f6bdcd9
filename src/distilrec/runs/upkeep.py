"""What is done with a finished run: gate, drift, tuning."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import msgspec
import polars as pl

from distilrec.data.cleaning import clean_log
from distilrec.data.dataset import Dataset
from distilrec.distill.tuning import Budget, Choice, Setup, Tuned, tune
from distilrec.engine.recommender import load
from distilrec.errors import ConfigError
from distilrec.files import read_json, write_whole
from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import paired_difference
from distilrec.report.comparison import (
    ALONE,
    EARLIER,
    STUDENT,
    TEACHER,
    BundleScorer,
    Comparison,
    K,
    quality_of,
)
from distilrec.report.drift import Drift, drift
from distilrec.report.gate import Check, Thresholds, check
from distilrec.runs.candidates import engine_latency, model_bytes
from distilrec.runs.folder import Run
from distilrec.runs.source import new_log
from distilrec.runs.stages import student_labels


def gate(run: Run, dataset: Dataset, thresholds: Thresholds) -> list[Check]:
    """Measure the exported bundle on the test part, against thresholds.

    The teacher's figures are those of the last `evaluate`. Raises ConfigError for a threshold that
    cannot be measured.
    """
    held_out = questions(dataset, "test")
    quality = quality_of(rank(BundleScorer(run.bundle, dataset), held_out, K))
    measured: dict[str, dict[str, float]] = {
        "quality": {name: float(values.mean()) for name, values in quality.items()},
        "retention": {},
        "improvement": {},
        "refresh": {},
        "latency": {},
        "size": {},
    }
    path = run.places.comparison
    if path.is_file():
        comparison = read_json(
            path, Comparison, error=ConfigError, fix="run `distilrec evaluate` again"
        )
        of_teacher = comparison.row(TEACHER).quality
        measured["retention"] = {
            name: value / of_teacher[name].mean
            for name, value in measured["quality"].items()
            if name in of_teacher and of_teacher[name].mean > 0
        }
        measured["refresh"] = {
            difference.metric: difference.interval.low
            for difference in comparison.differences
            if difference.b == EARLIER
        }
    if thresholds.improvement and run.bundle_baseline.is_dir():
        baseline = quality_of(rank(BundleScorer(run.bundle_baseline, dataset), held_out, K))
        measured["improvement"] = {
            name: paired_difference(
                name, STUDENT, values[None], ALONE, baseline[name][None]
            ).interval.low
            for name, values in quality.items()
        }
    recommender = load(run.bundle)
    if thresholds.latency:
        latency = engine_latency(recommender, dataset)
        measured["latency"] = {"p50": latency.p50, "p99": latency.p99}
    manifest = recommender.manifest
    measured["size"] = {"parameters": manifest.parameters, "bytes": model_bytes(manifest)}
    return check(thresholds, measured)


def check_drift(
    run: Run, dataset: Dataset, log: Path, *, stability: float, unknown: float
) -> list[Drift]:
    """Clean the events of a new log like the training log, and compare them with it. Raises what
    `clean_log` raises.
    """
    source = new_log(run, log)
    cleaning = msgspec.structs.replace(run.config.cleaning, min_user_events=0, min_item_events=0)
    with TemporaryDirectory(prefix="distilrec-") as folder:
        scratch = Path(folder)
        clean = clean_log(source.log.open(scratch), source, cleaning, scratch)
        live = pl.concat([clean.part(number) for number in range(len(clean.parts))])
    for line in clean.report.lines():
        run.progress.say(line)
    return drift(dataset, live, stability=stability, unknown=unknown)


Tunable = Literal["student", "baseline"]


def tune_students(
    run: Run, dataset: Dataset, *, trials: int, minutes: float, only: Tunable | None = None
) -> Tuned:
    """Search for the hyper-parameters of the student on the labels of the run, and with the same
    budget for those of the student without distillation; write `tuned.toml`.

    only: one of the two. Raises ConfigError for another name.
    """
    names: tuple[Tunable, ...] = get_args(Tunable)
    if only is not None and only not in names:
        raise ConfigError(
            f"{only!r} is not what can be tuned",
            fix="use one of: " + ", ".join(names),
            parameter="only",
        )
    budget = Budget(trials, minutes)
    choices = {
        name: _tune(run, dataset, name, budget) if only in (None, name) else None for name in names
    }
    tuned = Tuned(choices["student"], choices["baseline"])
    write_whole(run.places.tuned, tuned.toml().encode())
    run.progress.say(f"see {run.places.tuned}")
    return tuned


def _tune(run: Run, dataset: Dataset, name: Tunable, budget: Budget) -> Choice:
    """Search for the hyper-parameters of one of the two students."""
    config, trials = run.config, budget.trials
    distilled = Setup(config.student, config.student_training, config.distillation)
    alone = Setup(
        config.baseline.student or config.student,
        config.baseline.training or config.student_training,
        None,
    )
    chosen = tune(
        distilled if name == "student" else alone,
        dataset,
        student_labels(run, dataset) if name == "student" else [],
        run.places.tuning,
        seed=config.seed,
        budget=budget,
        options=run.options,
        on_trial=lambda trial, value, best: run.progress.advance(
            f"tune {name}",
            min(trial, trials),
            trials,
            f"{value:.4f}, best validation NDCG@10 {best:.4f}",
        ),
    )
    run.progress.say(
        f"{name}: best validation NDCG@10 {chosen.validation_ndcg:.4f} in trial {chosen.trial}"
    )
    return chosen
