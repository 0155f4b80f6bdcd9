"""Models of a run that are trained once, and the time and memory of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from distilrec.data.dataset import Dataset
from distilrec.files import key_of, write_json
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
    if SAVED.made_from(folder) == made_from:
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
        f"best epoch {trained.record.best_epoch} of {len(curve)}, validation NDCG@10 "
        f"{trained.best_ndcg:.4f}, "
        f"{trained.seconds:.0f} s"
    )
    return trained


@dataclass
class Stage:
    """reused: nothing was done, what an earlier run had done is used."""

    reused: bool = False


@contextmanager
def measured_stage(run: Run, name: str) -> Iterator[Stage]:
    """Write time and peak memory of a stage into costs.json; a stage that did nothing leaves what
    is there.

    Time and memory are those of this process; workers of a cluster are not counted.
    """
    stage, began = Stage(), time.perf_counter()
    reset_peak_memory()
    yield stage
    costs = {cost.stage: cost for cost in read_costs(run.folder)}
    if not (stage.reused and name in costs):
        run.folder.mkdir(parents=True, exist_ok=True)
        costs[name] = StageCost(name, time.perf_counter() - began, peak_memory())
        write_json(run.places.costs, list(costs.values()))
