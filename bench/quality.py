"""Teacher, student, the same student without distillation, and baselines, over several seeds.

    python bench/quality.py [--dataset ml-100k] [--seeds 3] [--folder runs/quality/ml-100k]
        [--config FILE] [--no-shared-teacher] [--processes 1] [--draw 0] [--ties HOW]

--dataset names one of the nine data sets in `bench/results/` (the table SETS), which has its
configuration; tables that a recipe makes are made where they are missing. Another configuration of
one of them, or another data set, comes with --config.

Each seed is a whole run (teacher, labels, both students, bundles) in a folder of its own: an
interrupted benchmark resumes where it stopped. All students learn from the labels of one teacher,
that of seed 0; with --no-shared-teacher each seed has its own. With --processes 2 two seeds are
trained side by side, each in a process with one thread; they are measured afterwards, one after
the other. Students are measured through their exported bundles. Hyper-parameters are those of the
configuration, the epoch of each model is chosen on validation; the test part is only read here.
Prints a table, the paired differences and one JSON line, and writes both into `bench/results/`
(`quality-NAME.md`; after the configuration with --config).
A log without order has other held-out events with --draw 1, --draw 2 and so on, whose results are
`draw-1-NAME.md`: whether a figure depends on which events were drawn. With --ties shuffled the
events of a user at the same time are in a drawn order, in place of that of the log's rows, with
--ties unordered in another one in each epoch, and with --ties sets all events of a user are; the
results are `ties-shuffled-NAME.md` and so on, and --draw draws other orders.
`python bench/summary.py` puts all data sets into one table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import numpy as np
import torch

from distilrec import runs
from distilrec.bundle.manifest import Manifest
from distilrec.data.dataset import Dataset
from distilrec.data.order import Ties
from distilrec.report.baselines import fitted_baselines
from distilrec.report.comparison import ALONE, STUDENT, TEACHER, Candidate, Comparison, compare
from distilrec.report.page import table, write_report
from distilrec.report.recency import recent_baselines
from distilrec.runs.config import RunConfig, read_config
from distilrec.runs.places import BASELINE
from distilrec.teachers.build import item_vectors, known_baselines
from distilrec.teachers.teacher import Teacher
from distilrec.training.trained import load_model
from distilrec.training.validation import validation_ndcg

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
# Every data set of the summary with its configuration
SETS = {
    "ml-1m": "examples/films/recipe.toml",
    "ml-100k": "bench/ml-100k.toml",
    "ta-feng": "examples/groceries/recipe.toml",
    "online-retail": "examples/dirty-shop/recipe.toml",
    "complete-journey": "examples/e-commerce/recipe.toml",
    "lastfm": "examples/music/recipe.toml",
    "lastfm-friends": "examples/people/recipe.toml",
    "filmtrust": "examples/films-and-trust/recipe.toml",
    "news-bing": "examples/news/recipe.toml",
}
TIES = (*get_args(Ties), "sets")
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
        run, dataset, teacher = trained_seed(config, folder)
        manifest = runs.export(run, dataset)
        if not (share_teacher and self.teachers):
            self.teachers.append(runs.teacher_candidates(teacher, dataset))
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
    parser.add_argument("--dataset", default="ml-100k", choices=SETS)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shared-teacher", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--draw", type=int, default=0)
    parser.add_argument("--ties", choices=TIES)
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.processes) < 1:
        parser.error("--seeds and --processes are at least 1")
    base = read_config(arguments.config or ROOT / SETS[arguments.dataset])
    make_tables(base)
    name = arguments.dataset if arguments.config is None else arguments.config.resolve().stem
    drawn = drawn_name(arguments.ties, arguments.draw)
    base = with_ties(base, arguments.ties, arguments.draw)
    folder = arguments.folder or Path("runs") / "quality" / "-".join(filter(None, (name, drawn)))
    shared, found = arguments.shared_teacher, Seeds()
    seeds = seeds_of(base, folder, arguments.seeds, share_teacher=shared)
    if arguments.processes > 1:
        _train_side_by_side(seeds, arguments.processes, share_teacher=shared)
    for place, config in seeds.items():
        print(place.name, flush=True)
        last = found.add(config, place, share_teacher=shared)
    comparison = _compared(found, last, arguments.seeds)
    comparison = msgspec.structs.replace(comparison, costs=runs.read_costs(folder / "seed-0"))
    context = base.student_training.context
    _write_results(
        comparison,
        found.validation,
        last,
        arguments.seeds,
        _file_name(arguments.config, drawn, comparison.dataset),
        shared=shared,
        context=context,
    )
    write_report(comparison, folder / "report.html")


def _file_name(config: Path | None, drawn: str, dataset: str) -> str:
    """Return what the files of the results are called: after a configuration that --config names,
    so that they are apart from those of the summary.
    """
    if config is None:
        return f"{drawn or 'quality'}-{dataset}"
    stem = config.resolve().stem
    own = stem if stem.endswith(dataset) else f"{stem}-{dataset}"
    return f"{drawn}-{own}" if drawn else own


def drawn_name(ties: str | None, draw: int) -> str:
    """Return what is drawn otherwise than usually, as a part of names; "" where nothing is."""
    names = (f"ties-{ties}" if ties else "", f"draw-{draw}" if draw else "")
    return "-".join(filter(None, names))


def with_ties(base: RunConfig, ties: str | None, draw: int) -> RunConfig:
    """Return a configuration with one of TIES, its own where ties is None; "sets": whose events
    have no order at all.
    """
    data = msgspec.structs.replace(base.data, draw=draw or base.data.draw)
    if ties == "sets":
        data = msgspec.structs.replace(data, order="none", ties="rows")
    elif ties is not None:
        data = msgspec.structs.replace(data, ties=ties)
    return msgspec.structs.replace(base, data=data)


def make_tables(config: RunConfig) -> None:
    """Make the tables that a recipe reads, where they are missing, by the script beside them."""
    log = config.data.interactions
    if log is None or Path(str(log)).exists():
        return
    recipe = Path(str(log)).parent.parent / "recipe.py"
    if recipe.is_file():
        subprocess.run([sys.executable, recipe, "--tables-only"], check=True)


def seeds_of(
    base: RunConfig, folder: Path, count: int, *, share_teacher: bool
) -> dict[Path, RunConfig]:
    """Return the configuration of each seed by its folder, which is there to be worked in."""
    found = {}
    for seed in range(count):
        place = folder / f"seed-{seed}"
        config = msgspec.structs.replace(base, seed=seed)
        place.mkdir(parents=True, exist_ok=True)
        if share_teacher:
            config = msgspec.structs.replace(config, teacher_seed=0)
            link_teacher(place, seed)
        found[place] = config
    return found


def _train_side_by_side(
    seeds: dict[Path, RunConfig], processes: int, *, share_teacher: bool
) -> None:
    """Train what the seeds lack, some of them at the same time."""
    if share_teacher:
        place, config = next(iter(seeds.items()))
        run, dataset = runs.prepare(config, place, runs.Lines())
        runs.train_teacher(run, dataset)
        runs.teacher_labels(run, dataset)
    # Processes that are forked inherit the locks of the threads that torch has begun here.
    fresh = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, fresh, initializer=_use_one_thread) as pool:
        list(pool.map(_train, seeds.values(), seeds))


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _train(config: RunConfig, folder: Path) -> None:
    """Train a seed in a process of its own; the models stay in the folder."""
    trained_seed(config, folder)


def trained_seed(config: RunConfig, folder: Path) -> tuple[runs.Run, Dataset, Teacher]:
    """Return the run of a seed with its teacher and both students, trained where they are not."""
    run, dataset = runs.prepare(config, folder, runs.Lines())
    teacher = runs.train_teacher(run, dataset)
    runs.train_baseline(run, dataset)
    runs.warn_of_little_headroom(run, dataset)
    runs.distill_student(run, dataset)
    return run, dataset, teacher


def link_teacher(folder: Path, seed: int) -> None:
    """Let the run of a later seed find the teacher and the labels of seed 0."""
    for name in ("teacher", "labels") if seed else ():
        if not os.path.lexists(folder / name):  # the teacher may be still to come
            (folder / name).symlink_to(Path("..") / "seed-0" / name)


def _compared(found: Seeds, last: Last, seeds: int) -> Comparison:
    """Return the comparison of all models and baselines on the test part."""
    baselines = {
        **fitted_baselines(last.dataset, known_baselines(last.teacher)),
        **recent_baselines(last.dataset),
    }
    candidates = found.candidates(seeds) + [
        Candidate(name, (scorer,) * seeds, logits=False) for name, scorer in baselines.items()
    ]
    vectors = item_vectors(last.teacher)
    return compare(
        last.dataset, candidates, lambda name: print(f"measuring {name}", flush=True), vectors
    )


def _write_results(
    comparison: Comparison,
    validation: dict[str, list[float]],
    last: Last,
    seeds: int,
    file: str,
    *,
    shared: bool,
    context: float,
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
            "context": context,
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
    (RESULTS / f"{file}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{file}.json").write_text(line + "\n")


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
