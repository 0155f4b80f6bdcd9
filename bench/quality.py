"""Teacher, student, the same student without distillation, and baselines, over several seeds.

    python bench/quality.py [--dataset ml-100k] [--seeds 5] [--folder runs/quality] [--config FILE]

Each seed is a whole run (teacher, labels, both students, bundles) in a folder of its own: an interrupted benchmark goes
on where it was. Students are measured through their exported bundles. Hyper-parameters are those of the configuration, the
epoch of each model is chosen on validation; the test part is only read here. Prints a table, the paired differences and
one JSON line, and writes both into `bench/results/`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np

from distilrec import load, pipeline
from distilrec.config import DataConfig, RunConfig, read_config
from distilrec.evaluate.baselines import fitted_baselines
from distilrec.evaluate.comparison import ALONE, STUDENT, TEACHER, BundleScorer, Candidate, compare
from distilrec.evaluate.report import table, write_report
from distilrec.models import load_model
from distilrec.training.model import TorchScorer

RESULTS = Path(__file__).parent / "results"


class Lines(pipeline.Silent):
    """Only the findings, one a line: made for a log file."""

    def say(self, line: str) -> None:
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    base = read_config(arguments.config) if arguments.config else RunConfig(DataConfig(dataset=arguments.dataset))

    seconds: dict[str, list[float]] = {TEACHER: [], STUDENT: [], ALONE: []}
    parameters: dict[str, int] = {}
    scorers: dict[str, list[TorchScorer | BundleScorer]] = {TEACHER: [], STUDENT: [], ALONE: []}
    validation: dict[str, list[float]] = {TEACHER: [], STUDENT: [], ALONE: []}
    for seed in range(arguments.seeds):
        print(f"seed {seed}", flush=True)
        config = msgspec.structs.replace(base, seed=seed)
        run, dataset = pipeline.prepare(config, arguments.folder / f"seed-{seed}", Lines())
        pipeline.train_teacher(run, dataset)
        pipeline.distil_student(run, dataset)
        pipeline.train_alone(run, dataset)
        manifest = pipeline.export(run, dataset)
        for name, folder in ((TEACHER, "teacher"), (STUDENT, "student"), (ALONE, "alone")):
            trained = load_model(run.folder / folder, dataset)
            seconds[name].append(trained.seconds)
            parameters[name] = trained.model.parameter_count()
            validation[name].append(trained.best_ndcg)
            if name == TEACHER:
                scorers[name].append(TorchScorer(trained.model))
                teacher = trained
            else:
                scorers[name].append(BundleScorer(run.bundle if name == STUDENT else run.bundle_alone, dataset))
    sizes = {
        TEACHER: 4 * parameters[TEACHER],
        STUDENT: pipeline.model_bytes(manifest),
        ALONE: pipeline.model_bytes(manifest),
    }
    latencies = {
        TEACHER: pipeline.torch_latency(TorchScorer(teacher.model), dataset),
        STUDENT: pipeline.engine_latency(load(run.bundle), dataset),
        ALONE: pipeline.engine_latency(load(run.bundle_alone), dataset),
    }
    candidates = [
        Candidate(
            name, tuple(scorers[name]), parameters[name], sizes[name], float(np.mean(seconds[name])), latencies[name]
        )
        for name in (TEACHER, STUDENT, ALONE)
    ]
    candidates += [
        Candidate(name, (scorer,) * arguments.seeds, logits=False) for name, scorer in fitted_baselines(dataset).items()
    ]
    comparison = compare(dataset, candidates, vectors=teacher.model.items.vectors().detach().numpy())

    lines = [
        f"{dataset.info.name}, {comparison.split}, test part, {comparison.users:,} users, {arguments.seeds} seeds",
        "",
    ]
    header, *rows = table(comparison)
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| difference | metric | mean | 95% interval | p |", "|---|---|---|---|---|"]
    lines += [
        f"| {d.a} - {d.b} | {d.metric} | {d.interval.mean:+.4f} | [{d.interval.low:+.4f}, {d.interval.high:+.4f}] "
        f"| {d.p_value:.3g} |"
        for d in comparison.differences
    ]
    per_seed = {name: [float(np.mean(values)) for values in _ndcg_by_seed(dataset, scorers[name])] for name in scorers}
    lines += ["", "| test NDCG@10 by seed | " + " | ".join(map(str, range(arguments.seeds))) + " |"]
    lines += ["|---|" + "---|" * arguments.seeds]
    lines += [
        f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |" for name, values in per_seed.items()
    ]
    line = json.dumps(
        {
            "bench": "quality",
            "dataset": dataset.info.name,
            "seeds": list(range(arguments.seeds)),
            "test_ndcg_by_seed": per_seed,
            "validation_ndcg_by_seed": validation,
            "training_seconds": seconds,
            "differences": msgspec.to_builtins(comparison.differences),
        }
    )
    print("\n" + "\n".join(lines) + "\n\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"quality-{dataset.info.name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"quality-{dataset.info.name}.json").write_text(line + "\n")
    write_report(comparison, arguments.folder / "report.html")


def _ndcg_by_seed(dataset: pipeline.Dataset, scorers: list[TorchScorer | BundleScorer]) -> list[np.ndarray]:
    from distilrec.evaluate.metrics import ndcg
    from distilrec.evaluate.ranking import questions, rank

    asked = questions(dataset, "test")
    return [ndcg(rank(scorer, asked), 10) for scorer in scorers]


if __name__ == "__main__":
    main()
