"""What one training step of each kind costs on one core, part by part.

    python bench/training.py [--dataset ml-1m] [--steps 30] [--folder runs/training]

Networks of the size of examples/films/recipe.toml on MovieLens 1M. CPU time of the process with one
thread, the median over the steps, in milliseconds; the positions of a step are counted beside. The
labels of the distilled student are those of an untrained network: what they cost does not depend
on what they say. Prints a table and one JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from distilrec import runs
from distilrec.data import Dataset
from distilrec.distill.distillation import DistillationConfig, distillation_loss
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.networks.build import build_model
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.transformer import TransformerConfig
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.training import gradients, trainer
from distilrec.training.memory import reuse_freed_memory
from distilrec.training.options import Epoch, TrainingConfig, TrainingResult
from distilrec.training.scoring import GROUND_TRUTH, CrossEntropy, Loss, Objective
from distilrec.training.trained import finished
from distilrec.training.validation import validation_ndcg

RESULTS = Path(__file__).parent / "results"
STUDENT = RecurrentConfig(dim=64, scales=4)
SMALL_BATCHES = TrainingConfig(batch_size=8, averaging=0.998)
KINDS: dict[str, tuple[Any, TrainingConfig]] = {
    "transformer, d = 96, batches of 32": (
        TransformerConfig(dim=96, feed_forward=256, dropout=0.2, max_history=200),
        TrainingConfig(),
    ),
    "recurrent, d = 128, batches of 8": (
        RecurrentConfig(dim=128, scales=4, dropout=0.3),
        SMALL_BATCHES,
    ),
    "student, d = 64, batches of 8": (STUDENT, SMALL_BATCHES),
}
DISTILLED = "the same, distilled"
PARTS = ("data", "forward", "softmax and loss", "labels", "backward", "optimizer and rest")
_WARM_UP = 5  # steps before the clock counts


class Clock:
    """CPU time by part, of one step after the other."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def begin(self) -> None:
        self.steps.append(defaultdict(float))

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose time counts for this part."""

        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                self.steps[-1][part] += time.process_time() - began

        return call

    def median(self, part: str) -> float:
        """Return milliseconds."""
        return 1_000 * float(np.median([step[part] for step in self.steps[_WARM_UP:]]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/training"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reuse_freed_memory()
    config = RunConfig(DataConfig(dataset=arguments.dataset))
    _, dataset = runs.prepare(config, arguments.folder, runs.Lines())
    rows = {}
    for name, (network, training) in KINDS.items():
        rows[name] = measure(dataset, network, training, GROUND_TRUTH, arguments.steps)
    loss = labels_of_nobody(dataset, arguments.folder / "labels")
    rows[DISTILLED] = measure(
        dataset,
        msgspec.structs.replace(STUDENT, dropout=0.0),
        SMALL_BATCHES,
        loss,
        arguments.steps,
    )
    validation = validation_seconds(dataset)
    columns = ["positions", *PARTS, "step", "us per position"]
    lines = [
        f"{dataset.info.name}, one thread, ms of CPU in a step, medians of {arguments.steps} steps",
        "",
        "| network | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, row in rows.items():
        shown = [f"{row['positions']:,.0f}", *(f"{row[column]:.1f}" for column in columns[1:])]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += ["", f"Validation of the student, all users: {validation:.1f} s of CPU."]
    line = json.dumps({"bench": "training", "rows": rows, "validation_seconds": validation})
    print("\n".join(lines) + "\n\n" + line)
    (RESULTS / "training.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "training.json").write_text(line + "\n")


def measure(
    dataset: Dataset, network: Any, training: TrainingConfig, loss: Loss, steps: int
) -> dict[str, float]:
    """Return milliseconds by part."""
    clock = Clock()
    model = build_model(network, dataset, 0).train()
    here = torch.device("cpu")
    of = trainer._Training(model, dataset, Objective(loss), training, 0, here, torch.float32)
    batches = trainer.training_batches(
        dataset, of.windows, training.batch_size, np.random.default_rng(0)
    )
    if isinstance(loss, CrossEntropy):
        of.objective = Objective(CrossEntropy(loss.whole, clock.timed("labels", loss.mixture)))
    kept = trainer.encode_positions, trainer.add_gradients, gradients.torch.autograd.backward
    trainer.encode_positions = clock.timed("forward", kept[0])
    trainer.add_gradients = clock.timed("scored", kept[1])
    gradients.torch.autograd.backward = clock.timed("backward", kept[2])
    positions = []
    try:
        for step in range(steps + _WARM_UP):
            clock.begin()
            batch = clock.timed("data", next)(batches)
            clock.timed("step", of._step)(batch, step)
            positions.append(int((batch.targets >= 0).sum()))
    finally:
        trainer.encode_positions, trainer.add_gradients, gradients.torch.autograd.backward = kept
    for parts in clock.steps:
        parts["softmax and loss"] = parts["scored"] - parts["backward"] - parts["labels"]
        parts["optimizer and rest"] = parts["step"] - parts["forward"] - parts["scored"]
        parts["step"] += parts["data"]
    row = {part: clock.median(part) for part in (*PARTS, "step")}
    row["positions"] = float(np.median(positions[_WARM_UP:]))
    per_position = [
        parts["step"] / number for parts, number in zip(clock.steps, positions, strict=True)
    ]
    row["us per position"] = 1e6 * float(np.median(per_position[_WARM_UP:]))
    return row


def labels_of_nobody(dataset: Dataset, folder: Path) -> Loss:
    """Return the loss of a distillation from a network that has not been trained."""
    config = RecurrentConfig(dim=16)
    result = TrainingResult((Epoch(1, 1.0, 0.0, 0.0),), 1)
    teacher = finished(build_model(config, dataset, 0), config, 0, dataset, result)
    return distillation_loss(
        extract_labels(teacher, dataset, folder, LabelConfig(), seed=0), DistillationConfig()
    )


def validation_seconds(dataset: Dataset) -> float:
    """Return the CPU time of the validation after an epoch of the student."""
    scorer = TorchScorer(build_model(STUDENT, dataset, 0))
    began = time.process_time()
    validation_ndcg(scorer, dataset)
    return time.process_time() - began


if __name__ == "__main__":
    main()
