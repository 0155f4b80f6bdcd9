"""What labels cost: events per second of their extraction, and the memory of a training by the
number of labels.

    python bench/labels.py [--before TREE] [--turns 2] [--only extraction memory]

--before: another checkout of this repository (`git worktree add TREE COMMIT`), whose code is
measured beside the present one, in turns. Extraction: ML-100K, an untrained transformer (d = 96)
and an ensemble of it and a recurrent network (d = 128): what labels cost does not depend on what
they say. Memory: the default student, one epoch, distilled from the labels of a small network, on
synthetic logs of two sizes with the same 2,000 items. Every measurement is a process of its own
with one thread; CPU time, peak memory. Prints tables and one JSON line, and writes both into
`bench/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

for variable in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "POLARS_MAX_THREADS",
):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "labels"
ITEMS = 2_000
TEACHERS = ("transformer, d = 96", "ensemble of two")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ["extraction", "memory"]
    parser.add_argument("--only", nargs="*", choices=every, default=every)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--events", nargs=2, type=int, default=[200_000, 800_000])
    parser.add_argument("--child", help="a measurement as JSON; used by the script itself")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[(task := json.loads(arguments.child))["what"]](**task)))
        return
    trees = {"now": HERE.parent}
    if arguments.before is not None:
        trees = {"before": arguments.before.resolve(), **trees}
    lines: list[str] = []
    record: dict[str, Any] = {"bench": "labels"}
    if "extraction" in arguments.only:
        more, record["extraction"] = extraction(trees, arguments.turns)
        lines += [*more, ""]
    if "memory" in arguments.only:
        more, record["memory"] = memory(trees, arguments.events)
        lines += [*more, ""]
    line = json.dumps(record)
    print("\n".join(lines) + "\n" + line)
    (RESULTS / "labels.md").write_text("\n".join(lines))
    (RESULTS / "labels.json").write_text(line + "\n")


def extraction(trees: dict[str, Path], turns: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Return events per second by teacher and code, medians over the turns."""
    rows = []
    for teacher in TEACHERS:
        found: dict[str, list[dict[str, Any]]] = {code: [] for code in trees}
        for _ in range(turns):
            for code, tree in trees.items():
                found[code].append(measured(tree, "extraction", teacher=teacher, code=code))
        for code, results in found.items():
            rates = [result["events"] / result["seconds"] for result in results]
            row = {
                "teacher": teacher,
                "code": code,
                "events_per_second": float(np.median(rates)),
                "turns": rates,
                "bytes_per_event": results[0]["bytes"] / results[0]["events"],
                "peak_bytes": max(result["peak_bytes"] for result in results),
            }
            rows.append(row)
    lines = ["| teacher | code | events/s | B per event | peak memory |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['teacher']} | {row['code']} | {row['events_per_second']:,.0f} | "
        f"{row['bytes_per_event']:.0f} | {row['peak_bytes'] / 2**20:,.0f} MiB |"
        for row in rows
    ]
    return lines, rows


def memory(trees: dict[str, Path], sizes: list[int]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the peak memory of a training by code and number of labels."""
    from synthetic import synthetic_log  # not in the measured processes, whose code may be older

    rows = []
    for size in sizes:
        synthetic_log(log_of(size), size, ITEMS)
        for code, tree in trees.items():
            made = measured(tree, "store", events=size, code=code)
            rows.append(
                {"code": code, **made, **measured(tree, "training", events=size, code=code)}
            )
    lines = [
        "| code | labels | on disk | before the training | peak | growth |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['code']} | {row['labels']:,} | {row['bytes'] / 1e6:,.0f} MB | "
        f"{row['before_bytes'] / 2**20:,.0f} MiB | {row['peak_bytes'] / 2**20:,.0f} MiB | "
        f"{(row['peak_bytes'] - row['before_bytes']) / 2**20:,.0f} MiB |"
        for row in rows
    ]
    return lines, rows


def measured(tree: Path, what: str, **task: Any) -> Any:
    """Return what a process that imports the code of this tree has measured."""
    done = subprocess.run(
        [sys.executable, str(HERE / "labels.py"), "--child", json.dumps({"what": what, **task})],
        env={**os.environ, "PYTHONPATH": f"{tree / 'src'}:{HERE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    print(what, task, done.stdout.strip().splitlines()[-1], flush=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def extract(what: str, teacher: str, code: str) -> dict[str, float]:
    """Extract the labels of ML-100K."""
    from distilrec import runs
    from distilrec.labels.extract import LabelConfig, extract_labels
    from distilrec.networks.recurrent import RecurrentConfig
    from distilrec.networks.transformer import TransformerConfig
    from distilrec.runs.config import DataConfig, RunConfig
    from distilrec.teachers.ensemble import EnsembleTeacher
    from distilrec.teachers.teacher import ModelTeacher
    from distilrec.training.memory import peak_memory, reset_peak_memory

    _, dataset = runs.prepare(RunConfig(DataConfig(dataset="ml-100k")), RUNS / f"ml-100k-{code}")
    transformer = TransformerConfig(dim=96, feed_forward=256, dropout=0.2, max_history=200)
    answering: Any = ModelTeacher(untrained(transformer, dataset))
    if teacher != TEACHERS[0]:
        second = RecurrentConfig(dim=128, scales=4, dropout=0.3)
        answering = EnsembleTeacher(
            [answering, ModelTeacher(untrained(second, dataset))], [0.5, 0.5]
        )
    folder = RUNS / f"extracted-{code}"
    shutil.rmtree(folder, ignore_errors=True)
    reset_peak_memory()
    began = time.process_time()
    store = extract_labels(answering, dataset, folder, LabelConfig(), seed=0)
    return {
        "seconds": time.process_time() - began,
        "events": store.extraction.events,
        "bytes": store.extraction.bytes,
        "peak_bytes": peak_memory(),
    }


def untrained(config: Any, dataset: Any) -> Any:
    """Return a network that has not been trained, as if it had been."""
    from distilrec.networks.build import build_model
    from distilrec.training.options import Epoch, TrainingResult
    from distilrec.training.trained import finished

    result = TrainingResult((Epoch(1, 1.0, 0.0, 0.0),), 1)
    return finished(build_model(config, dataset, 0), config, 0, dataset, result)


def synthetic(events: int) -> Any:
    """Return a synthetic log that `memory` has made, prepared."""
    from distilrec import Schema, prepare_dataset

    return prepare_dataset(log_of(events), Schema(timestamp="timestamp"), name="synthetic")


def log_of(events: int) -> Path:
    return RUNS / f"log-{events}.parquet"


def make_store(what: str, events: int, code: str) -> dict[str, float]:
    """Extract the labels that a student is trained on."""
    from distilrec.labels.extract import LabelConfig, extract_labels
    from distilrec.networks.recurrent import RecurrentConfig

    dataset = synthetic(events)
    teacher = untrained(RecurrentConfig(dim=16), dataset)
    folder = RUNS / f"store-{code}-{events}"
    store = extract_labels(teacher, dataset, folder, LabelConfig(), seed=0)
    return {"labels": store.extraction.labels, "bytes": store.extraction.bytes}


def train_on_store(what: str, events: int, code: str) -> dict[str, float]:
    """Train the default student for one epoch on labels that are there."""
    from distilrec.distill.distillation import DistillationConfig, distill_model
    from distilrec.labels.store import open_labels
    from distilrec.networks.recurrent import RecurrentConfig
    from distilrec.training.memory import peak_memory, reset_peak_memory
    from distilrec.training.options import TrainingConfig

    dataset = synthetic(events)
    reset_peak_memory()
    before, began = peak_memory(), time.process_time()
    labels = open_labels(RUNS / f"store-{code}-{events}", dataset)
    distill_model(
        RecurrentConfig(),
        dataset,
        labels,
        TrainingConfig(epochs=1),
        DistillationConfig(),
        seed=0,
    )
    return {
        "seconds": time.process_time() - began,
        "before_bytes": before,
        "peak_bytes": peak_memory(),
    }


CHILDREN = {"extraction": extract, "store": make_store, "training": train_on_store}


if __name__ == "__main__":
    main()
