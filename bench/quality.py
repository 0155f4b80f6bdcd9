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
from pathlib import Path

import msgspec
import numpy as np

from distilrec import runs
from distilrec.report.baselines import fitted_baselines
from distilrec.report.comparison import ALONE, STUDENT, TEACHER, Candidate, Comparison, compare
from distilrec.report.page import table, write_report
from distilrec.runs.config import DataConfig, RunConfig, read_config
from distilrec.runs.places import BASELINE
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.trained import load_model
from distilrec.training.validation import validation_ndcg

RESULTS = Path(__file__).parent / "results"
STUDENTS = {STUDENT: "student", ALONE: BASELINE}


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

    teachers: list[list[Candidate]] = []
    students: dict[str, list[Candidate]] = {name: [] for name in STUDENTS}
    validation: dict[str, list[float]] = {TEACHER: [], **{name: [] for name in STUDENTS}}
    for seed in range(arguments.seeds):
        print(f"seed {seed}", flush=True)
        folder = arguments.folder / f"seed-{seed}"
        config = msgspec.structs.replace(base, seed=seed)
        if arguments.shared_teacher:
            config = msgspec.structs.replace(config, teacher_seed=0)
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("teacher", "labels") if seed else ():
                if not (folder / name).exists():
                    (folder / name).symlink_to(Path("..") / "seed-0" / name)
        run, dataset = runs.prepare(config, folder, runs.Lines())
        teacher = runs.train_teacher(run, dataset)
        runs.distill_student(run, dataset)
        runs.train_baseline(run, dataset)
        manifest = runs.export(run, dataset)
        if seed == 0 or not arguments.shared_teacher:
            teachers.append(runs.teacher_candidates(config.teacher, teacher, dataset))
        validation[TEACHER].append(validation_ndcg(teacher, dataset))
        for name, kept in STUDENTS.items():
            trained = run.places.model(kept)
            students[name].append(
                runs.student_candidate(dataset, name, trained, _bundle(run, name))
            )
            validation[name].append(load_model(trained, dataset).best_ndcg)

    candidates = [_together(each, arguments.seeds) for each in zip(*teachers, strict=True)]
    candidates += [_together(each, arguments.seeds) for each in students.values()]
    candidates += [
        Candidate(name, (scorer,) * arguments.seeds, logits=False)
        for name, scorer in fitted_baselines(dataset).items()
    ]
    vectors = teacher.item_vectors() if isinstance(teacher, ModelTeacher) else None
    comparison = compare(
        dataset, candidates, lambda name: print(f"measuring {name}", flush=True), vectors
    )
    comparison = msgspec.structs.replace(
        comparison, costs=runs.read_costs(arguments.folder / "seed-0")
    )

    lines = [
        f"{dataset.info.name}, {comparison.split}, test part, {comparison.users:,} users, "
        f"{arguments.seeds} seeds, "
        + ("one teacher for all" if arguments.shared_teacher else "each with its own teacher"),
        "",
        *_tables(comparison, validation),
    ]
    line = json.dumps(
        {
            "bench": "quality",
            "dataset": dataset.info.name,
            "seeds": list(range(arguments.seeds)),
            "shared_teacher": arguments.shared_teacher,
            "test_ndcg_by_seed": {row.name: row.ndcg_by_seed for row in comparison.rows},
            "validation_ndcg_by_seed": validation,
            "parameters": {row.name: row.parameters for row in comparison.rows},
            "model_bytes": runs.model_bytes(manifest),
            "latency_p50_us": {row.name: row.latency.p50 for row in comparison.rows if row.latency},
            "costs": msgspec.to_builtins(comparison.costs),
            "lost": msgspec.to_builtins(comparison.lost),
            "differences": msgspec.to_builtins(comparison.differences),
        }
    )
    print("\n" + "\n".join(lines) + "\n\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quality-{dataset.info.name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"quality-{dataset.info.name}.json").write_text(line + "\n")
    write_report(comparison, arguments.folder / "report.html")


def _bundle(run: runs.Run, name: str) -> Path:
    return run.bundle if name == STUDENT else run.bundle_baseline


def _together(of_seeds: tuple[Candidate, ...] | list[Candidate], seeds: int) -> Candidate:
    """Return the candidates of all seeds as one.

    Cost and size are those of the first; training time is the mean.
    """
    first = of_seeds[0]
    scorers = tuple(scorer for each in of_seeds for scorer in each.scorers)
    known = [each.training_seconds for each in of_seeds if each.training_seconds is not None]
    return Candidate(
        first.name,
        scorers * (seeds // len(scorers)),
        first.parameters,
        first.size,
        float(np.mean(known)) if known else None,
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
