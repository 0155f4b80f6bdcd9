"""Quality in time: models trained on what happened before a moment, asked about what came after.

    python bench/global_time.py [--dataset ml-100k] [--seeds 3] [--folder FOLDER] [--config FILE]
        [--alone] [--time] [--ties HOW] [--draw 0]

The recipes are those of `bench/quality.py`, with a split in time: the last tenth of all events is
test, the tenth before it validation. Each event of the test period is asked for at its own time,
with all that its user did before it ("successive"; of more than 20,000 events this many are drawn),
and so is the last event of each user ("last"). Models stay as they were trained: the fifths of the
test period show what that costs. With --alone only the student without distillation is trained;
with --time a recurrent student is told the time.

Resumes where it was interrupted: each seed has a run folder, as in `bench/quality.py`, and all
learn from the teacher of seed 0. Prints tables and one JSON line, and writes both into
`bench/results/` (`global-time-NAME.md`; --alone, --time and --ties are parts of the name).
`python bench/summary.py` puts all data sets into one table.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import msgspec
from quality import (
    RESULTS,
    ROOT,
    SETS,
    STUDENTS,
    TIES,
    drawn_name,
    make_tables,
    seeds_of,
    trained_seed,
    with_ties,
)

from distilrec import runs
from distilrec.data.dataset import Dataset
from distilrec.data.splits import Split
from distilrec.errors import ConfigError
from distilrec.export.export import export_bundle, holds
from distilrec.measure.ranking import Scorer
from distilrec.measure.successive import ComparedOverTime, Targets, compare_over_time
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.report.baselines import fitted_baselines
from distilrec.report.comparison import ALONE, STUDENT, TEACHER, BundleScorer
from distilrec.report.recency import recent_baselines
from distilrec.runs.config import RunConfig, read_config
from distilrec.teachers.build import known_baselines
from distilrec.training.trained import load_model

Scorers = dict[str, list[Scorer]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="ml-100k", choices=SETS)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--ties", choices=TIES)
    parser.add_argument("--draw", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds is at least 1")
    file = arguments.config or ROOT / SETS[arguments.dataset]
    base = read_config(file)
    make_tables(base)
    name = arguments.dataset if arguments.config is None else arguments.config.resolve().stem
    told = "time" if arguments.time else ""
    name = "-".join(filter(None, (name, told, drawn_name(arguments.ties, arguments.draw))))
    base = in_time(with_ties(base, arguments.ties, arguments.draw), told=arguments.time)
    # What is trained with --alone is used again without it
    folder = arguments.folder or Path("runs") / "global-time" / name
    name += "-alone" if arguments.alone else ""
    scorers, dataset = trained_models(base, folder, arguments.seeds, alone=arguments.alone)
    compared = [measured(dataset, scorers, targets) for targets in get_args(Targets)]
    write_results(name, dataset, arguments.seeds, base, compared)


def in_time(base: RunConfig, *, told: bool) -> RunConfig:
    """Return a configuration with a split in time. told: the student is told the time."""
    split = Split(
        kind="global-time",
        validation_share=base.split.validation_share,
        test_share=base.split.test_share,
    )
    base = msgspec.structs.replace(base, split=split)
    if not told:
        return base
    if not isinstance(base.student, RecurrentConfig):
        raise ConfigError("only a recurrent student is told the time", fix="leave --time out")
    student, alone = msgspec.structs.replace(base.student, time=True), base.baseline.student
    if isinstance(alone, RecurrentConfig):
        alone = msgspec.structs.replace(alone, time=True)
    baseline = msgspec.structs.replace(base.baseline, student=alone)
    return msgspec.structs.replace(base, student=student, baseline=baseline)


def trained_models(
    base: RunConfig, folder: Path, seeds: int, *, alone: bool
) -> tuple[Scorers, Dataset]:
    """Return the scorers of each model by seed, trained where they are not, and the data set."""
    found: Scorers = defaultdict(list)
    known: dict[str, Scorer] = {}
    for place, config in seeds_of(base, folder, seeds, share_teacher=not alone).items():
        print(place.name, flush=True)
        if alone:
            run, dataset = runs.prepare(config, place, runs.Lines())
            runs.train_baseline(run, dataset)
            names = [ALONE]
        else:
            run, dataset, teacher = trained_seed(config, place)
            found[TEACHER] = [teacher]
            known, names = dict(known_baselines(teacher)), [STUDENT, ALONE]
        for name in names:
            found[name].append(served(run, dataset, name))
    print("baselines", flush=True)
    for name, scorer in (fitted_baselines(dataset, known) | recent_baselines(dataset)).items():
        found[name] = [scorer]
    return dict(found), dataset


def served(run: runs.Run, dataset: Dataset, name: str) -> BundleScorer:
    """Return a student as its bundle answers, exported where it is not."""
    trained = load_model(run.places.model(STUDENTS[name]), dataset)
    bundle = run.bundle if name == STUDENT else run.bundle_baseline
    if not (bundle.is_dir() and holds(bundle, trained)):
        export_bundle(trained, dataset, bundle, config=run.config.bundle)
    return BundleScorer(bundle, dataset)


def measured(dataset: Dataset, scorers: Scorers, targets: Targets) -> ComparedOverTime:
    """Return the comparison of all models on the test period."""
    ours = [name for name in (STUDENT, ALONE) if name in scorers]
    pairs = [(one, other) for one in ours for other in scorers if other not in {STUDENT, one}]
    print(f"{targets} events of the test period", flush=True)
    return compare_over_time(
        dataset,
        scorers,
        targets=targets,
        pairs=pairs,
        on_model=lambda name: print(f"measuring {name}", flush=True),
    )


def write_results(
    name: str, dataset: Dataset, seeds: int, config: RunConfig, compared: Sequence[ComparedOverTime]
) -> None:
    """Print the tables and the JSON line, and write both into `bench/results/`."""
    lines = [f"{name}, global-time, test period, {seeds} seeds, no model is trained again", ""]
    for one in compared:
        lines += tables(one)
    line = json.dumps(
        {
            "bench": "global-time",
            "name": name,
            "dataset": dataset.info.name,
            "seeds": list(range(seeds)),
            "context": config.student_training.context,
            "why_no_times": dataset.why_no_times,
            "compared": {one.targets: msgspec.to_builtins(one) for one in compared},
        }
    )
    print("\n" + "\n".join(lines) + "\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"global-time-{name}.md").write_text("\n".join(lines).rstrip() + "\n")
    (RESULTS / f"global-time-{name}.json").write_text(line + "\n")


def tables(one: ComparedOverTime) -> Iterator[str]:
    """Yield the figures of one kind of targets as Markdown."""
    what = "Each event" if one.targets == "successive" else "The last event of each user"
    yield (
        f"{what} of the test period: {one.events:,} events of {one.users:,} users, "
        f"{one.unreachable:,} of items that no model knows, {one.repeated:,} repetitions left out"
    )
    yield ""
    days = [datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d") for start in one.starts]
    header = ["model", "NDCG@10 [95%]", "by seed", *(f"from {day}" for day in days)]
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    events = ["events", f"{one.events:,}", "", *(f"{count:,}" for count in one.period_events)]
    yield "| " + " | ".join(events) + " |"
    for model in one.models:
        seeds = ", ".join(f"{value:.4f}" for value in model.by_seed) if model.by_seed[1:] else ""
        fifths = ("" if math.isnan(value) else f"{value:.4f}" for value in model.periods)
        yield "| " + " | ".join([model.name, str(model.quality), seeds, *fifths]) + " |"
    yield ""
    yield "| difference | mean | 95% interval | p |"
    yield "|---|---|---|---|"
    for of in one.differences:
        low, high = of.interval.low, of.interval.high
        interval = f"[{low:+.4f}, {high:+.4f}]"
        yield f"| {of.a} - {of.b} | {of.interval.mean:+.4f} | {interval} | {of.p_value:.3g} |"
    yield ""


if __name__ == "__main__":
    main()
