"""What privacy costs, and what an attacker sees: DP-SGD, private votes, and membership inference on
each student.

    python bench/privacy.py [--seeds 3] [--folder runs/privacy] [--only plain private votes]

MovieLens 1M, films with 200 ratings or more. A tenth of the people are volunteers, a fifth
outsiders, the others members:

- plain: students of the members, without distillation and with the labels of a linear teacher of the members;
- private: students of the members by DP-SGD (ground truth alone), at several epsilons, from nothing (one seed) and from the
  weights of the volunteers' student;
- votes: students of the volunteers alone, and with the noisy votes of 200 teachers of disjoint groups of members, among the
  50 items that the volunteers' student puts first.

Quality is NDCG@10 of the outsiders' last film, after all that they did before: people of whom no
model has learned, for all models alike. The attack: anyone who has the weights and the history of a
person scores how well the model knows that history, by the mean log-likelihood of its films, alone
or minus that of a model of the volunteers (Watson et al. 2022); AUC of telling members from
outsiders (.5 is chance), the larger of the two, and how many members are found at 1% false alarms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from distilrec import prepare_dataset
from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import Dataset, load_dataset
from distilrec.data.fetch import DATASETS, fetch_dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import questions, rank
from distilrec.measure.statistics import bootstrap
from distilrec.networks.batches import batch_of, training_windows
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import SequenceModel, TorchScorer
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.privacy.dpsgd import train_private
from distilrec.privacy.votes import VoteConfig, private_votes
from distilrec.teachers.linear import LinearConfig, fit_linear
from distilrec.training.options import TrainingConfig
from distilrec.training.scoring import MASKED_LOGIT, seen_items
from distilrec.training.trained import TrainedModel, load_model, save_model, train_model

RESULTS = Path(__file__).parent / "results"
STUDENT = RecurrentConfig()
TRAINING = TrainingConfig(epochs=12, patience=12, learning_rate=4e-3)
FEW_USERS = TrainingConfig(epochs=20, patience=5, learning_rate=4e-3)
PRIVATE = PrivateTrainingConfig(delta=1e-5, steps=100, events=30)
FROM_VOLUNTEERS = PrivateTrainingConfig(delta=1e-5, steps=60, events=30, learning_rate=2e-3)
EPSILONS = (1.0, 4.0, 16.0, 64.0)
VOTE_EPSILONS = (2.0, 8.0, 32.0, None)
VOTERS, CANDIDATES = 200, 50


@dataclass(frozen=True)
class People:
    volunteers: Dataset
    members: Dataset
    outsiders: Dataset


def people(folder: Path) -> People:
    """MovieLens 1M in three groups of people; items and encoders are those of all (a catalogue is
    no secret).
    """
    if not (folder / "dataset.json").is_file():
        source, schema = fetch_dataset("ml-1m", print), DATASETS["ml-1m"].schema
        prepare_dataset(
            source / "interactions.csv", schema, users=source / "users.csv", name="ml-1m",
            cleaning=Cleaning(min_item_events=200), derived_features=False,
            items=source / "items.csv",
        ).save(folder)  # fmt: skip
    data = load_dataset(folder)
    order = np.random.default_rng(0).permutation(data.info.warm_users)
    tenth = len(order) // 10
    groups = (order[:tenth], order[3 * tenth :], order[tenth : 3 * tenth])
    return People(*(data.select_users(np.sort(group)) for group in groups))


def log_likelihood(model: SequenceModel, dataset: Dataset) -> NDArray[np.float64]:
    """Return the mean of log softmax(s)[y] over the training rows of each user, (users,)."""
    windows = training_windows(dataset, model.max_history)
    sums, counts = np.zeros(dataset.users), np.zeros(dataset.users)
    warm = model.items.warm_items
    with torch.inference_mode():
        vectors = model.items.vectors()
        for start in range(0, len(windows.starts), 32):
            batch = batch_of(
                dataset, windows, np.arange(start, min(start + 32, len(windows.starts)))
            )
            window, position = ((batch.targets >= 0) & (batch.targets < warm)).nonzero(
                as_tuple=True
            )
            targets = batch.targets[window, position]
            logits = model.score(
                model.encode(batch, vectors)[window, position], vectors[:warm], model.items.bias
            )
            seen = seen_items(batch, dataset.catalogue_size, window, position, slice(warm))
            seen[torch.arange(len(targets)), targets] = False
            each = torch.log_softmax(logits.masked_fill(seen, MASKED_LOGIT), -1)[
                torch.arange(len(targets)), targets
            ]
            np.add.at(sums, batch.users[window].numpy(), each.double().numpy())
            np.add.at(counts, batch.users[window].numpy(), 1)
    return sums / np.maximum(counts, 1)


def with_features_of(trained: TrainedModel, dataset: Dataset) -> SequenceModel:
    """Return the model for other people: their features in the place of those it was trained with."""
    model = trained.model
    model.user_features.columns = torch.from_numpy(dataset.user_features.columns.astype(np.int64))  # type: ignore[union-attr]
    model.user_features.weights = torch.from_numpy(dataset.user_features.weights)  # type: ignore[union-attr]
    return model


def of_users(trained: TrainedModel, dataset: Dataset) -> NDArray[np.float64]:
    return log_likelihood(with_features_of(trained, dataset), dataset)


def attack(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[float, float]:
    """AUC, and the share of members found at 1% false alarms."""
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    scores = np.concatenate([inside, outside])
    alarms, found, _ = roc_curve(truth, scores)
    return float(roc_auc_score(truth, scores)), float(found[alarms <= 0.01].max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/privacy"))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=("plain", "private", "votes"),
        default=("plain", "private", "votes"),
    )
    arguments = parser.parse_args()
    who = people(arguments.folder / "data")
    asked = questions(who.outsiders, "test")
    print(
        f"{who.volunteers.users:,} volunteers, {who.members.users:,} members, "
        f"{who.outsiders.users:,} outsiders",
        flush=True,
    )
    reference: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    rows: list[dict[str, object]] = []

    def measure(
        name: str,
        dataset: Dataset,
        make: Callable[[int], TrainedModel],
        seeds: int = arguments.seeds,
    ) -> list[TrainedModel]:
        """Trains and measures the students of one kind; each is kept in the folder."""
        values, attacks, spent, models = [], [], None, []
        for seed in range(seeds):
            place = arguments.folder / name.replace(" ", "-").replace(",", "") / f"seed-{seed}"
            if not (place / "model.json").is_file():
                save_model(make(seed), place)
            trained = load_model(place, dataset)
            models.append(trained)
            spent = trained.record.privacy
            values.append(
                ndcg(rank(TorchScorer(with_features_of(trained, who.outsiders)), asked), 10)
            )
            inside, outside = of_users(trained, who.members), of_users(trained, who.outsiders)
            found = [attack(inside, outside)]
            if reference:
                found.append(attack(inside - reference[0][0], outside - reference[0][1]))
            attacks.append(max(found))
            print(
                f"{name}, seed {seed}: NDCG@10 {values[-1].mean():.4f}, attack {attacks[-1]}",
                flush=True,
            )
        rows.append(
            {
                "model": name,
                "ndcg": str(bootstrap(np.stack(values))),
                "ndcg_by_seed": [float(each.mean()) for each in values],
                "auc_by_seed": [auc for auc, _ in attacks],
                "found_by_seed": [found for _, found in attacks],
                "privacy": None if spent is None else msgspec.to_builtins(spent),
            }
        )
        return models

    of_volunteers = measure(
        "volunteers alone",
        who.volunteers,
        lambda seed: train_model(STUDENT, who.volunteers, FEW_USERS, seed=seed),
    )
    reference.append(
        (of_users(of_volunteers[0], who.members), of_users(of_volunteers[0], who.outsiders))
    )
    if "private" in arguments.only:
        for epsilon in EPSILONS:
            further = msgspec.structs.replace(FROM_VOLUNTEERS, epsilon=epsilon)
            measure(
                f"DP-SGD from the volunteers' student, epsilon {epsilon:g}",
                who.members,
                lambda seed: train_private(
                    STUDENT, who.members, further, seed=seed, start=of_volunteers[seed]
                ),
            )
        for epsilon in EPSILONS:
            config = msgspec.structs.replace(PRIVATE, epsilon=epsilon)
            measure(
                f"DP-SGD, epsilon {epsilon:g}",
                who.members,
                lambda seed: train_private(STUDENT, who.members, config, seed=seed),
                seeds=1,
            )
    if "plain" in arguments.only:
        measure(
            "no privacy",
            who.members,
            lambda seed: train_model(STUDENT, who.members, TRAINING, seed=seed),
        )
        teacher = fit_linear(LinearConfig(), who.members, 0)
        labels = extract_labels(
            teacher, who.members, arguments.folder / "labels", LabelConfig(), seed=0
        )
        measure(
            "no privacy, distilled",
            who.members,
            lambda seed: distill_model(
                STUDENT, who.members, labels, TRAINING, DistillationConfig(), seed=seed
            ),
        )
    if "votes" in arguments.only:
        groups = np.array_split(np.random.default_rng(1).permutation(who.members.users), VOTERS)
        voters = [
            fit_linear(LinearConfig(), who.members.select_users(np.sort(group)), 0)
            for group in groups
        ]
        everyone = np.arange(who.volunteers.info.warm_users)
        histories = who.volunteers.histories(everyone, who.volunteers.train_end[everyone])
        first = TorchScorer(with_features_of(of_volunteers[0], who.volunteers)).scores(histories)
        for k in range(len(histories)):
            first[k, histories.of(k)] = -np.inf
        candidates = np.argsort(-first, axis=1)[:, :CANDIDATES].astype(np.int64)
        for epsilon in VOTE_EPSILONS:
            name = "votes, no noise" if epsilon is None else f"votes, epsilon {epsilon:g}"
            votes = private_votes(
                voters, who.volunteers, VoteConfig(epsilon), candidates=candidates, seed=0
            )
            print(
                f"{name}: sigma {votes.sigma:.1f}, largest count {votes.counts.max():.1f}",
                flush=True,
            )
            labels = extract_labels(
                votes.teacher(who.volunteers),
                who.volunteers,
                arguments.folder / f"labels-{epsilon}",
                LabelConfig(),
                seed=0,
            )
            measure(
                name,
                who.volunteers,
                lambda seed: distill_model(
                    STUDENT, who.volunteers, labels, FEW_USERS, DistillationConfig(0.5), seed=seed
                ),
            )
    lines = [
        f"MovieLens 1M, films with 200 ratings or more, {arguments.seeds} seeds; "
        f"{who.members.users:,} members, "
        f"{who.volunteers.users:,} volunteers, quality on {len(asked.histories):,} outsiders",
        "",
        "| student | NDCG@10 of outsiders | attack: AUC | found at 1% false alarms |",
        "|---|---|---|---|",
        *(
            f"| {row['model']} | {row['ndcg']} | {np.mean(row['auc_by_seed']):.3f} | {np.mean(row['found_by_seed']):.1%} |"  # type: ignore[arg-type]
            for row in rows
        ),
    ]
    line = json.dumps({"bench": "privacy", "seeds": arguments.seeds, "rows": rows})
    print("\n".join(lines) + "\n" + line)
    RESULTS.mkdir(exist_ok=True)
    name = (
        "privacy"
        if set(arguments.only) == {"plain", "private", "votes"}
        else f"privacy-{'-'.join(arguments.only)}"
    )
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
