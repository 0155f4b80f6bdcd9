"""What it takes to train on a log of the size of Amazon Books: 100,000 items, 5 million events.

    python bench/large.py [--events 5000000] [--items 100000] [--negatives 1000]

Prepares a synthetic log (`bench/synthetic.py`) and trains the default student for one epoch by a
sampled softmax, on one core. CPU time of the process and its peak memory by stage. What such a log
cannot show is quality. Prints a table and one JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "POLARS_MAX_THREADS",
):
    os.environ[variable] = "1"

import torch  # noqa: E402

from distilrec import Schema, prepare_dataset  # noqa: E402
from distilrec.networks.batches import Batch  # noqa: E402
from distilrec.networks.build import build_model  # noqa: E402
from distilrec.networks.recurrent import RecurrentConfig  # noqa: E402
from distilrec.training import trainer  # noqa: E402
from distilrec.training.memory import peak_memory, reset_peak_memory, reuse_freed_memory  # noqa: E402
from distilrec.training.options import TrainingConfig  # noqa: E402
from distilrec.training.scoring import GROUND_TRUTH, Objective  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "large"
TARGET = 8 * 2**30  # bytes


class Stages:
    """CPU time and peak memory of one stage after the other."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def measure(self, name: str, events: int, work: Callable[[], Any]) -> Any:
        """Return what the work returns. events: those that it goes through, 0 for others."""
        reset_peak_memory()
        began, wall = time.process_time(), time.perf_counter()
        result = work()
        seconds = time.process_time() - began
        row = {
            "stage": name,
            "seconds": seconds,
            "wall_seconds": time.perf_counter() - wall,
            "per_million_events": seconds / events * 1e6 if events else None,
            "peak_bytes": peak_memory(),
        }
        self.rows.append(row)
        print(row, flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--negatives", type=int, default=1_000)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reuse_freed_memory()
    log, stages = made_log(arguments.events, arguments.items), Stages()
    dataset = stages.measure(
        "preparation",
        arguments.events,
        lambda: prepare_dataset(log, Schema(timestamp="timestamp"), name="synthetic"),
    )
    events = int(dataset.is_training().sum())
    config = TrainingConfig(
        epochs=1, batch_size=arguments.batch_size, negatives=arguments.negatives
    )
    training = stages.measure(
        "windows and questions",
        0,
        lambda: trainer._Training(
            build_model(RecurrentConfig(), dataset, 0),
            dataset,
            Objective(GROUND_TRUTH),
            config,
            0,
            torch.device("cpu"),
            torch.float32,
        ),
    )
    tell_progress(training)
    stages.measure("training, one epoch", events, lambda: training.train_epoch(1))
    users = len(training.asked.histories)
    stages.measure(f"validation, {users:,} users", 0, training.validate)
    lines = table(stages.rows)
    parameters = training.model.parameter_count()
    head = (
        f"{events:,} training events of {dataset.users:,} users, {dataset.catalogue_size:,} items; "
        f"the default student ({parameters:,} parameters), {config.negatives:,} drawn items, "
        f"batches of {config.batch_size}; one core, CPU time"
    )
    highest = max(row["peak_bytes"] for row in stages.rows)
    lines = [head, "", *lines, "", f"Peak memory {highest / 2**30:.2f} GiB, target 8 GiB."]
    record = {
        "bench": "large",
        "events": events,
        "users": dataset.users,
        "items": dataset.catalogue_size,
        "parameters": parameters,
        "negatives": config.negatives,
        "batch_size": config.batch_size,
        "met": highest <= TARGET,
        "rows": stages.rows,
    }
    line = json.dumps(record)
    print("\n".join(lines) + "\n\n" + line)
    (RESULTS / "large.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "large.json").write_text(line + "\n")


def tell_progress(training: trainer._Training) -> None:
    """Print where an epoch is, each hundred steps."""
    step = training._step

    def told(batch: Batch, number: int, changes: Any) -> float:
        if number % 100 == 0:
            print(
                f"step {number} of {training.steps_per_epoch}, {time.process_time():.0f} s of CPU",
                flush=True,
            )
        return step(batch, number, changes)

    training._step = told  # type: ignore[method-assign]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line per stage."""
    lines = ["| stage | CPU time | per million events | peak memory |", "|---|---|---|---|"]
    for row in rows:
        rate = row["per_million_events"]
        lines.append(
            f"| {row['stage']} | {row['seconds']:.1f} s | "
            + ("" if rate is None else f"{rate:.1f} s")
            + f" | {row['peak_bytes'] / 2**30:.2f} GiB |"
        )
    return lines


def made_log(events: int, items: int) -> Path:
    """Return a synthetic log, made by another process, so that its memory does not count here."""
    file = RUNS / f"log-{events}-{items}.parquet"
    code = "import sys; from pathlib import Path; from synthetic import synthetic_log; "
    code += "synthetic_log(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    subprocess.run(
        [sys.executable, "-c", code, str(file), str(events), str(items)], check=True, cwd=HERE
    )
    return file


if __name__ == "__main__":
    main()
