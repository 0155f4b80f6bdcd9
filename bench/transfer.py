"""What a teacher from one domain gives a student in another: Amazon books and films, by the people who are in both.

    python bench/transfer.py [--seeds 3] [--folder runs/transfer]

For each direction three students on the same log of the target, with the same split:

- no transfer: labels of a linear teacher that knows the target domain alone;
- labels: those of the same teacher plus what a linear teacher of both domains says of a user's source items;
- labels and features: the same, and the student knows up to 30 source items of a user as a feature.

A fifth of the people in both domains keep only three target interactions (one for training): cold users. Order is random,
the data have no time. Nothing held out in the target is in any training. Test part, NDCG@10, paired by user.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from distilrec import Feature, Schema, prepare_dataset
from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import Dataset, Histories
from distilrec.distill.distillation import DistillationConfig, distil
from distilrec.evaluate.metrics import ndcg
from distilrec.evaluate.ranking import questions, rank
from distilrec.evaluate.statistics import bootstrap, paired_difference
from distilrec.knowledge.extract import LabelConfig, extract_labels
from distilrec.models import load_model, save_model
from distilrec.students.recurrent import RecurrentConfig
from distilrec.teachers.external import function_teacher
from distilrec.teachers.linear import LinearConfig, LinearTeacher, fit_linear
from distilrec.teachers.teacher import Teacher
from distilrec.training.model import TorchScorer
from distilrec.training.trainer import TrainingConfig
from distilrec.training.validation import validation_ndcg

SOURCE = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "amazon-books-movies-cdr"
RESULTS = Path(__file__).parent / "results"
FEATURE = (Feature("source", "multi"),)
LINEAR = LinearConfig(ridge=100.0, decay=1.0)
TRAINING = TrainingConfig(epochs=60, patience=15, learning_rate=4e-3)
SHARES = (0.0, 0.1, 0.2, 0.4, 0.8)  # of the source in the scores, chosen on validation
WAYS = ("no transfer", "labels", "labels and features")


def read(domain: str) -> pl.DataFrame:
    """Who liked what, once each, in random order."""
    table = pl.read_csv(SOURCE / f"Amazon-{domain}-Dense.inter", separator="\t", infer_schema=False)
    return table.select("user_id", "item_id").unique(maintain_order=True).sample(fraction=1.0, shuffle=True, seed=0)


def target_log(target: pl.DataFrame, source: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The target's log, and the people of whom it holds three interactions only."""
    both = sorted(set(target["user_id"]) & set(source["user_id"]))
    cold = np.random.default_rng(0).choice(both, len(both) // 5, replace=False).tolist()
    place = pl.int_range(pl.len()).over("user_id")
    return target.filter(~pl.col("user_id").is_in(cold) | (place < 3)), cold


def prepared(log: pl.DataFrame, source: pl.DataFrame | None) -> Dataset:
    """source: becomes a feature of the users."""
    cleaning = Cleaning(min_user_events=3, min_item_events=3)
    if source is None:
        return prepare_dataset(log, Schema(), cleaning=cleaning)
    users = source.group_by("user_id", maintain_order=True).agg(source=pl.col("item_id").head(30))
    return prepare_dataset(log, Schema(user_key="user_id", user_features=FEATURE), users=users, cleaning=cleaning)


def of_both_domains(
    data: Dataset, source: pl.DataFrame, alone: LinearTeacher
) -> tuple[Callable[[Histories], NDArray[np.float32]], float]:
    """What `alone`, the teacher of the target, says, plus a share of what a user's source items say; and that share.

    The latter are rows of a linear teacher over the items of both domains.
    """
    names, target = data.info.item_ids, data.training_rows()
    owners = [data.info.user_ids[user] for user in data.user_rows()[target]]
    rows = pl.DataFrame({"user_id": owners, "item_id": [f"t:{names[item]}" for item in data.items[target]]})
    other = source.select("user_id", pl.format("s:{}", "item_id").alias("item_id"))
    together = prepare_dataset(pl.concat([rows, other]).sample(fraction=1.0, shuffle=True, seed=1), Schema())
    linear = fit_linear(LINEAR, together, 0)
    places = {item: n for n, item in enumerate(together.info.item_ids)}
    column = np.array([places.get(f"t:{item}", -1) for item in names[: data.info.warm_items]])
    past: dict[str, list[int]] = {}
    for user, item in other.iter_rows():
        if item in places:
            past.setdefault(user, []).append(places[item])

    in_target = np.zeros((data.users, len(column)), np.float32)
    for user, name in enumerate(data.info.user_ids):
        if name in past:
            said = linear.weights[past[name]].sum(0)
            in_target[user] = np.where(column >= 0, said[column], 0.0)

    def with_share(share: float) -> Callable[[Histories], NDArray[np.float32]]:
        return lambda histories: alone.scores(histories)[:, : len(column)] + share * in_target[histories.users]

    validated = {
        share: validation_ndcg(function_teacher(with_share(share), data, identity=f"share {share}"), data)
        for share in SHARES
    }
    best = max(SHARES, key=lambda share: validated[share])
    return with_share(best), best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/transfer"))
    arguments = parser.parse_args()
    lines, records = [], []
    for source_name, target_name in (("Books", "Movies"), ("Movies", "Books")):
        source = read(source_name)
        log, cold_ids = target_log(read(target_name), source)
        data = {way: prepared(log, source if way == WAYS[2] else None) for way in WAYS}
        plain = data[WAYS[0]]
        alone = fit_linear(LINEAR, plain, 0)
        function, share = of_both_domains(plain, source, alone)
        teachers: dict[str, Teacher] = {
            "no transfer": alone,
            **{
                way: function_teacher(function, data[way], identity=f"both, {target_name}, {share}") for way in WAYS[1:]
            },
        }
        asked = questions(plain, "test")
        cold = np.isin([plain.info.user_ids[user] for user in asked.histories.users], cold_ids)
        values: dict[str, NDArray[np.float64]] = {}
        for way in WAYS:
            folder = arguments.folder / f"{source_name}-{target_name}" / way.replace(" ", "-")
            labels = extract_labels(teachers[way], data[way], folder / "labels", LabelConfig(), seed=0)
            values[f"teacher, {way}"] = ndcg(rank(teachers[way], questions(data[way], "test")), 10)[None]
            each = []
            for seed in range(arguments.seeds):
                place = folder / f"student-{seed}"
                if not (place / "model.json").is_file():
                    config, how = RecurrentConfig(dim=64), DistillationConfig(0.8)
                    save_model(distil(config, data[way], labels, TRAINING, how, seed=seed), place)
                model = load_model(place, data[way]).model
                each.append(ndcg(rank(TorchScorer(model), questions(data[way], "test")), 10))
                print(f"{source_name} to {target_name}, {way}, seed {seed}: {each[-1].mean():.4f}", flush=True)
            values[f"student, {way}"] = np.stack(each)
        lines += [
            f"{source_name} to {target_name}: {len(cold):,} test users, {int(cold.sum())} of them cold, "
            f"{plain.catalogue_size:,} items, {arguments.seeds} seeds; share of the source in the teacher {share:g}",
            "",
            "| model | all users | cold users | gain over no transfer, all | gain, cold |",
            "|---|---|---|---|---|",
        ]
        for name, own in values.items():
            role, way = name.split(", ")
            base = values[f"{role}, {WAYS[0]}"]
            gains = [
                paired_difference("ndcg@10", way, own[:, some], WAYS[0], base[:, some]).interval
                for some in (np.ones(len(cold), bool), cold)
            ]
            shown = ["" if way == WAYS[0] else f"{g.mean:+.4f} [{g.low:+.4f}, {g.high:+.4f}]" for g in gains]
            lines.append(f"| {name} | {bootstrap(own)} | {bootstrap(own[:, cold])} | {shown[0]} | {shown[1]} |")
            records.append(
                {
                    "source": source_name,
                    "target": target_name,
                    "model": name,
                    "ndcg_by_seed": own.mean(1).tolist(),
                    "cold_ndcg_by_seed": own[:, cold].mean(1).tolist(),
                    "gain": [g.mean for g in gains],
                }
            )
        lines.append("")
    line = json.dumps({"bench": "transfer", "rows": records})
    print("\n".join(lines) + "\n" + line)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "transfer.md").write_text("\n".join(lines))
    (RESULTS / "transfer.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
