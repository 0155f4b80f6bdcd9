"""Models of a run that are trained once, and the time and memory of each stage.

What a stage makes are records (`distilrec.files`). A record holds a key of what it was made from; a
record with the same key is used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distilrec.data.dataset import Dataset
from distilrec.files import RecordKind, key_of, locked, write_json
from distilrec.report.comparison import StageCost
from distilrec.runs.folder import Run, read_costs
from distilrec.training.checkpoints import drop_checkpoint
from distilrec.training.memory import peak_memory, reset_peak_memory
from distilrec.training.trained import SAVED, TrainedModel, load_model, save_model


def trained_once(
    run: Run,
    dataset: Dataset,
    name: str,
    task: object,
    make: Callable[..., TrainedModel],
) -> TrainedModel:
    """Return a model, trained unless the folder already has it from the same data, configuration
    and seed.

    make: trains it, from `options`.
    """
    folder, checkpoint = run.places.model(name), run.places.checkpoint(name)
    made_from = key_of(dataset.fingerprint(), run.config.seed, task)
    if SAVED.is_made(folder, made_from):
        trained = load_model(folder, dataset)
        drop_checkpoint(checkpoint)
        run.progress.say(f"{name}: already trained, validation NDCG@10 {trained.best_ndcg:.4f}")
        return trained

    with measured_stage(run, name):
        options = replace(run.options, checkpoint=checkpoint)
        trained = options.train_together(
            make,
            lambda epoch, total: run.progress.advance(name, epoch.epoch, total, epoch.note()),
        )
    save_model(trained, folder, made_from)
    drop_checkpoint(checkpoint)
    curve = trained.record.curve
    run.progress.advance(
        name, curve[-1].epoch, curve[-1].epoch, f"best validation NDCG@10 {trained.best_ndcg:.4f}"
    )
    run.progress.say(
        f"{name}: {type(trained.model).__name__.lower()}, {trained.model.parameter_count():,} "
        "parameters, "
        + (
            f"best epoch {trained.record.best_epoch} of {len(curve)}, "
            if trained.record.best_epoch
            else f"no epoch of {len(curve)} better than the weights of the last time, "
        )
        + f"validation NDCG@10 {trained.best_ndcg:.4f}, "
        f"{trained.seconds:.0f} s"
    )
    return trained


@dataclass
class Stage:
    """reused: whether the stage used all of its records as they were; known when it ends."""

    reused: bool = False


@contextmanager
def measured_stage(
    run: Run, name: str, records: Sequence[tuple[RecordKind[Any], Path]] = ()
) -> Iterator[Stage]:
    """Write time and peak memory of a stage into costs.json, and report them; a stage that used its
    records again leaves what is there.

    records: what the stage makes, by kind and folder. Time and memory are those of this process;
    workers of a cluster are not counted.
    """
    stage, began = Stage(), time.perf_counter()
    before = _keys(records)
    reset_peak_memory()
    yield stage
    stage.reused = bool(before) and None not in before and before == _keys(records)
    if not (stage.reused and name in {cost.stage for cost in read_costs(run.folder)}):
        record_cost(run, StageCost(name, time.perf_counter() - began, peak_memory()))


def record_cost(run: Run, cost: StageCost) -> None:
    """Write what a stage cost into costs.json, in the place of what it cost before; report it."""
    data = run.places.data
    data.mkdir(parents=True, exist_ok=True)
    with locked(data):  # two stages may end at the same time, each in its process
        costs = {earlier.stage: earlier for earlier in read_costs(run.folder)} | {cost.stage: cost}
        write_json(run.places.costs, list(costs.values()))
    run.progress.say(cost.line())


def _keys(records: Sequence[tuple[RecordKind[Any], Path]]) -> list[str | None]:
    return [kind.made_from(folder) for kind, folder in records]
