"""Teacher, student, the same student without distillation, and baselines, over several seeds.

    python bench/quality.py [--dataset ml-100k] [--seeds 5] [--folder runs/quality] [--config FILE]
        [--shared-teacher]

Each seed is a whole run (teacher, labels, both students, bundles) in a folder of its own: an
interrupted benchmark resumes where it stopped. With --shared-teacher all students learn from the
labels of one teacher, that of seed 0. Students are measured through their exported bundles.
Hyper-parameters are those of the configuration, the epoch of each model is chosen on validation;
the test part is only read here. Prints a table, the paired differences and one JSON line, and
writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from distilrec import runs
from distilrec.bundle.manifest import Manifest
from distilrec.data.dataset import Dataset
from distilrec.report.baselines import fitted_baselines
from distilrec.report.comparison import ALONE, STUDENT, TEACHER, Candidate, Comparison, compare
from distilrec.report.page import table, write_report
from distilrec.runs.config import DataConfig, RunConfig, read_config
from distilrec.runs.places import BASELINE
from distilrec.teachers.teacher import ModelTeacher, Teacher
from distilrec.training.trained import load_model
from distilrec.training.validation import validation_ndcg

RESULTS = Path(__file__).parent / "results"
STUDENTS = {STUDENT: "student", ALONE: BASELINE}


class Last(NamedTuple):
    """What the report takes from the run of the last seed."""

    dataset: Dataset
    teacher: Teacher
    manifest: Manifest


@dataclass
class Seeds:
    """What is known of all seeds: candidates for the test part, and figures of validation."""

    teachers: list[list[Candidate]] = field(default_factory=list)
    students: dict[str, list[Candidate]] = field(
        default_factory=lambda: {name: [] for name in STUDENTS}
    )
    validation: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in (TEACHER, *STUDENTS)}
    )

    def add(self, config: RunConfig, folder: Path, *, share_teacher: bool) -> Last:
        """Make the run of one seed, or resume it, and add what it found."""
        run, dataset = runs.prepare(config, folder, runs.Lines())
        teacher = runs.train_teacher(run, dataset)
        runs.distill_student(run, dataset)
        runs.train_baseline(run, dataset)
        manifest = runs.export(run, dataset)
        if not (share_teacher and self.teachers):
            self.teachers.append(runs.teacher_candidates(config.teacher, teacher, dataset))
        self.validation[TEACHER].append(validation_ndcg(teacher, dataset))
        for name, kept in STUDENTS.items():
            trained = run.places.model(kept)
            candidate = runs.student_candidate(dataset, name, trained, _bundle(run, name))
            self.students[name].append(candidate)
            self.validation[name].append(load_model(trained, dataset).best_ndcg)
        return Last(dataset, teacher, manifest)

    def candidates(self, seeds: int) -> list[Candidate]:
        """Return the teachers and students, each with all seeds together."""
        of_seeds = [*zip(*self.teachers, strict=True), *self.students.values()]
        return [_together(candidates, seeds) for candidates in of_seeds]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    parser.add_argument("--shared-teacher", action="store_true")
    arguments = parser.parse_args()
    base = (
        read_config(arguments.config)
        if arguments.config
        else RunConfig(DataConfig(dataset=arguments.dataset))
    )
    shared, found = arguments.shared_teacher, Seeds()
    for seed in range(arguments.seeds):
        print(f"seed {seed}", flush=True)
        folder = arguments.folder / f"seed-{seed}"
        config = msgspec.structs.replace(base, seed=seed)
        if shared:
            config = msgspec.structs.replace(config, teacher_seed=0)
            _link_teacher(folder, seed)
        last = found.add(config, folder, share_teacher=shared)
    comparison = _compared(found, last, arguments.seeds)
    comparison = msgspec.structs.replace(
        comparison, costs=runs.read_costs(arguments.folder / "seed-0")
    )
    _write_results(comparison, found.validation, last, arguments.seeds, shared=shared)
    write_report(comparison, arguments.folder / "report.html")


def _link_teacher(folder: Path, seed: int) -> None:
    """Let the run of a later seed find the teacher and the labels of seed 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("teacher", "labels") if seed else ():
        if not (folder / name).exists():
            (folder / name).symlink_to(Path("..") / "seed-0" / name)


def _compared(found: Seeds, last: Last, seeds: int) -> Comparison:
    """Return the comparison of all models and baselines on the test part."""
    candidates = found.candidates(seeds) + [
        Candidate(name, (scorer,) * seeds, logits=False)
        for name, scorer in fitted_baselines(last.dataset).items()
    ]
    vectors = last.teacher.item_vectors() if isinstance(last.teacher, ModelTeacher) else None
    return compare(
        last.dataset, candidates, lambda name: print(f"measuring {name}", flush=True), vectors
    )


def _write_results(
    comparison: Comparison,
    validation: dict[str, list[float]],
    last: Last,
    seeds: int,
    *,
    shared: bool,
) -> None:
    """Print the tables and the JSON line, and write both into `bench/results/`."""
    name = last.dataset.info.name
    lines = [
        f"{name}, {comparison.split}, test part, {comparison.users:,} users, {seeds} seeds, "
        + ("one teacher for all" if shared else "each with its own teacher"),
        "",
        *_tables(comparison, validation),
    ]
    line = json.dumps(
        {
            "bench": "quality",
            "dataset": name,
            "seeds": list(range(seeds)),
            "shared_teacher": shared,
            "test_ndcg_by_seed": {row.name: row.ndcg_by_seed for row in comparison.rows},
            "validation_ndcg_by_seed": validation,
            "parameters": {row.name: row.parameters for row in comparison.rows},
            "model_bytes": runs.model_bytes(last.manifest),
            "latency_p50_us": {row.name: row.latency.p50 for row in comparison.rows if row.latency},
            "costs": msgspec.to_builtins(comparison.costs),
            "lost": msgspec.to_builtins(comparison.fidelity),
            "differences": msgspec.to_builtins(comparison.differences),
        }
    )
    print("\n" + "\n".join(lines) + "\n\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quality-{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"quality-{name}.json").write_text(line + "\n")


def _bundle(run: runs.Run, name: str) -> Path:
    return run.bundle if name == STUDENT else run.bundle_baseline


def _together(of_seeds: Sequence[Candidate], seeds: int) -> Candidate:
    """Return the candidates of all seeds as one.

    Cost and size are those of the first; training time is the mean.
    """
    first = of_seeds[0]
    scorers = tuple(scorer for candidate in of_seeds for scorer in candidate.scorers)
    times = [candidate.training_seconds for candidate in of_seeds]
    seconds = [time for time in times if time is not None]
    return Candidate(
        first.name,
        scorers * (seeds // len(scorers)),
        first.parameters,
        first.size,
        float(np.mean(seconds)) if seconds else None,
        first.latency,
        logits=first.logits,
    )


def _tables(comparison: Comparison, validation: dict[str, list[float]]) -> list[str]:
    """Return the comparison, the paired differences and the figures by seed, as Markdown."""
    header, *rows = table(comparison)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| difference | metric | mean | 95% interval | p |", "|---|---|---|---|---|"]
    lines += [
        f"| {d.a} - {d.b} | {d.metric} | {d.interval.mean:+.4f} | [{d.interval.low:+.4f}, "
        f"{d.interval.high:+.4f}] "
        f"| {d.p_value:.3g} |"
        for d in comparison.differences
    ]
    seeds = range(len(comparison.rows[0].ndcg_by_seed))
    lines += [
        "",
        "| NDCG@10 by seed | " + " | ".join(map(str, seeds)) + " |",
        "|---|" + "---|" * len(seeds),
    ]
    lines += [
        f"| {row.name}, test | " + " | ".join(f"{value:.4f}" for value in row.ndcg_by_seed) + " |"
        for row in comparison.rows
        if row.name in validation
    ]
    lines += [
        f"| {name}, validation | " + " | ".join(f"{value:.4f}" for value in values) + " |"
        for name, values in validation.items()
    ]
    return lines


if __name__ == "__main__":
    main()
