"""What privacy costs, and what an attacker sees: DP-SGD, private votes, and membership inference on
each student.

    python bench/privacy.py [--seeds 3] [--folder runs/privacy] [--only plain private votes]
                            [--epsilons 1 4 16 64] [--members 4228]

MovieLens 1M, films with 200 ratings or more. A tenth of the people are volunteers, a fifth
outsiders, the others members:

- plain: students of the members, without distillation and with the labels of a linear teacher of
  the members;
- private: students of the members by DP-SGD (ground truth alone), at several epsilons, from nothing
  (one seed) and from the weights of the volunteers' student;
- votes: students of the volunteers alone, and with the noisy votes of 200 teachers of disjoint
  groups of members, among the 50 items that the volunteers' student puts first.

Quality is NDCG@10 of the outsiders' last film, after all that they did before: people of whom no
model has learned, for all models alike. The attack: anyone who has the weights and the history of a
person scores how well the model knows that history, by the mean log-likelihood of its films, alone
or minus that of a model of the volunteers (Watson et al. 2022); AUC of telling members from
outsiders (.5 is chance), the larger of the two, and how many members are found at 1% false alarms.

Each student is attacked twice: with its weights as they were trained, in windows of a history, and
with nothing but the file that `distilrec export --web` writes of it, whose items have 8 bits; then
the likelihood of each film is that after all films before it, as the engine follows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score, roc_curve

from distilrec import prepare_dataset
from distilrec.bundle.drec import read_drec
from distilrec.bundle.format import read_bundle
from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import Dataset, load_dataset
from distilrec.data.fetch import DATASETS, fetch_dataset
from distilrec.distill.distillation import DistillationConfig, distill_model
from distilrec.engine.embedding import embed_bag
from distilrec.engine.loops import loops_of
from distilrec.engine.runtimes.kinds import make_runtime
from distilrec.engine.web import write_drec
from distilrec.export.export import export_bundle
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
from distilrec.training.scoring import MASKED_LOGIT, seen_so_far
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
PARTS = ("plain", "private", "votes")


@dataclass(frozen=True)
class People:
    volunteers: Dataset
    members: Dataset
    outsiders: Dataset


def people(folder: Path, most: int | None) -> People:
    """Return MovieLens 1M in three groups of people; items and encoders are those of all, because
    a catalogue is no secret.

    most: members, in a smaller and quicker experiment, whose folder must be another one.
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
    groups = (order[:tenth], order[3 * tenth :][:most], order[tenth : 3 * tenth])
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
            seen = seen_so_far(batch, dataset.catalogue_size, window, position).among(slice(warm))
            seen[torch.arange(len(targets)), targets] = False
            found = torch.log_softmax(logits.masked_fill(seen, MASKED_LOGIT), -1)[
                torch.arange(len(targets)), targets
            ]
            np.add.at(sums, batch.users[window].numpy(), found.double().numpy())
            np.add.at(counts, batch.users[window].numpy(), 1)
    return sums / np.maximum(counts, 1)


def with_features_of(trained: TrainedModel, dataset: Dataset) -> SequenceModel:
    """Return the model for other people: their features instead of those in training."""
    model = trained.model
    model.user_features.columns = torch.from_numpy(dataset.user_features.columns.astype(np.int64))  # type: ignore[union-attr]
    model.user_features.weights = torch.from_numpy(dataset.user_features.weights)  # type: ignore[union-attr]
    model.user_features.dense = None  # type: ignore[union-attr]
    return model


def of_users(trained: TrainedModel, dataset: Dataset) -> NDArray[np.float64]:
    return log_likelihood(with_features_of(trained, dataset), dataset)


def written_file(trained: TrainedModel, dataset: Dataset, folder: Path) -> Path:
    """Return the web file of a student, written unless it is there."""
    file = folder / "student.drec"
    if not file.is_file():
        export_bundle(trained, dataset, folder / "bundle", with_history=False)
        write_drec(read_bundle(folder / "bundle"), file)
    return file


def log_likelihood_by_file(file: Path, dataset: Dataset) -> NDArray[np.float64]:
    """Return what `log_likelihood` returns, as those see it who have only the web file."""
    bundle = read_drec(file)
    runtime = make_runtime(bundle, "exact", loops_of("numba"))
    warm = np.arange(dataset.info.warm_items)
    if bundle.catalogue.ids != list(dataset.info.item_ids):
        raise SystemExit(f"{file} has other items than the data set")
    users = np.arange(dataset.info.warm_users)
    histories = dataset.histories(users, dataset.train_end[users])
    table, features = bundle.weights.user_table, dataset.user_features
    means = np.zeros(dataset.users)
    for user in users:
        rows = slice(histories.offsets[user], histories.offsets[user + 1])
        items, events = histories.items[rows], histories.events[rows]
        bag = zip(features.columns[user], features.weights[user], strict=True)
        states = np.empty((len(items), *runtime.new_state().shape), np.float32)
        state = runtime.new_state()
        for n in range(len(items)):
            states[n] = state
            runtime.fold(state, items[n : n + 1], events[n : n + 1])
        scores = runtime.scores_of(states, embed_bag(bag, table), warm).astype(np.float64)
        own = np.arange(len(items))[items < len(warm)]
        targets = scores[own, items[own]]
        later, before = np.tril_indices(len(items), -1)
        known = items[before] < len(warm)
        scores[later[known], items[before[known]]] = MASKED_LOGIT
        scores[own, items[own]] = targets
        if len(own):
            means[user] = (targets - logsumexp(scores[own], axis=1)).mean()
    return means


def attack(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> tuple[float, float]:
    """Return the AUC, and the share of members found at 1% false alarms."""
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    scores = np.concatenate([inside, outside])
    alarms, found, _ = roc_curve(truth, scores)
    return float(roc_auc_score(truth, scores)), float(found[alarms <= 0.01].max())


Likelihoods = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of members and of outsiders."""


@dataclass
class Measurements:
    """Train and measure the students of each kind; each student is kept in the folder."""

    people: People
    folder: Path
    seeds: int
    reference: Likelihoods | None = None
    """What the volunteers' student says, once it is trained."""
    reference_by_file: Likelihoods | None = None
    """What its web file says."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def measure(
        self,
        name: str,
        dataset: Dataset,
        make: Callable[[int], TrainedModel],
        seeds: int | None = None,
    ) -> list[TrainedModel]:
        """Add a row for the students of one kind, and return them."""
        outsiders, test = self.people.outsiders, questions(self.people.outsiders, "test")
        values, attacks, by_file, spent, models = [], [], [], None, []
        for seed in range(self.seeds if seeds is None else seeds):
            folder = self.folder_of(name, seed)
            if not (folder / "model.json").is_file():
                save_model(make(seed), folder)
            trained = load_model(folder, dataset)
            models.append(trained)
            spent = trained.record.privacy
            file = written_file(trained, dataset, folder)
            scorer = TorchScorer(with_features_of(trained, outsiders))
            values.append(ndcg(rank(scorer, test), 10))
            attacks.append(strongest(self.told_by(trained), self.reference))
            by_file.append(strongest(self.told_by_file(file), self.reference_by_file))
            print(
                f"{name}, seed {seed}: NDCG@10 {values[-1].mean():.4f}, attack {attacks[-1]}, "
                f"by its file {by_file[-1]}",
                flush=True,
            )
        self.rows.append(
            {
                "model": name,
                "ndcg": str(bootstrap(np.stack(values))),
                "ndcg_by_seed": [float(by_user.mean()) for by_user in values],
                "auc_by_seed": [auc for auc, _ in attacks],
                "found_by_seed": [found for _, found in attacks],
                "file_auc_by_seed": [auc for auc, _ in by_file],
                "file_found_by_seed": [found for _, found in by_file],
                "privacy": None if spent is None else msgspec.to_builtins(spent),
            }
        )
        return models

    def told_by(self, trained: TrainedModel) -> Likelihoods:
        return of_users(trained, self.people.members), of_users(trained, self.people.outsiders)

    def told_by_file(self, file: Path) -> Likelihoods:
        members, outsiders = self.people.members, self.people.outsiders
        return log_likelihood_by_file(file, members), log_likelihood_by_file(file, outsiders)

    def file_of(self, name: str, seed: int) -> Path:
        """Return where the web file of a student is."""
        return self.folder_of(name, seed) / "student.drec"

    def folder_of(self, name: str, seed: int) -> Path:
        return self.folder / name.replace(" ", "-").replace(",", "") / f"seed-{seed}"


def strongest(told: Likelihoods, reference: Likelihoods | None) -> tuple[float, float]:
    """Return the result of the stronger of the two attacks."""
    found = [attack(*told)]
    if reference is not None:
        found.append(attack(told[0] - reference[0], told[1] - reference[1]))
    return max(found)


def measure_volunteers(work: Measurements) -> list[TrainedModel]:
    """Measure the students of the volunteers alone; the first is the reference of the attacks."""
    who = work.people
    name = "volunteers alone"
    students = work.measure(
        name,
        who.volunteers,
        lambda seed: train_model(STUDENT, who.volunteers, FEW_USERS, seed=seed),
    )
    work.reference = work.told_by(students[0])
    work.reference_by_file = work.told_by_file(work.file_of(name, 0))
    return students


def measure_private(
    work: Measurements, of_volunteers: list[TrainedModel], epsilons: Sequence[float]
) -> None:
    """Measure the students that DP-SGD trains, from the volunteers' student and from nothing."""
    members = work.people.members
    for epsilon in epsilons:
        further = msgspec.structs.replace(FROM_VOLUNTEERS, epsilon=epsilon)
        work.measure(
            f"DP-SGD from the volunteers' student, epsilon {epsilon:g}",
            members,
            lambda seed: train_private(
                STUDENT, members, further, seed=seed, start=of_volunteers[seed]
            ),
        )
    for epsilon in epsilons:
        config = msgspec.structs.replace(PRIVATE, epsilon=epsilon)
        work.measure(
            f"DP-SGD, epsilon {epsilon:g}",
            members,
            lambda seed: train_private(STUDENT, members, config, seed=seed),
            seeds=1,
        )


def measure_plain(work: Measurements) -> None:
    """Measure the students of the members without privacy, from the log and from labels."""
    members = work.people.members
    work.measure(
        "no privacy", members, lambda seed: train_model(STUDENT, members, TRAINING, seed=seed)
    )
    teacher = fit_linear(LinearConfig(), members, 0)
    labels = extract_labels(teacher, members, work.folder / "labels", LabelConfig(), seed=0)
    work.measure(
        "no privacy, distilled",
        members,
        lambda seed: distill_model(
            STUDENT, members, labels, TRAINING, DistillationConfig(), seed=seed
        ),
    )


def measure_votes(work: Measurements, of_volunteers: list[TrainedModel]) -> None:
    """Measure the students of the volunteers that learn from noisy votes of the members."""
    volunteers, members = work.people.volunteers, work.people.members
    groups = np.array_split(np.random.default_rng(1).permutation(members.users), VOTERS)
    voters = [
        fit_linear(LinearConfig(), members.select_users(np.sort(group)), 0) for group in groups
    ]
    candidates = _candidates(of_volunteers[0], volunteers)
    for epsilon in VOTE_EPSILONS:
        name = "votes, no noise" if epsilon is None else f"votes, epsilon {epsilon:g}"
        votes = private_votes(
            voters, volunteers, VoteConfig(epsilon), candidates=candidates, seed=0
        )
        print(
            f"{name}: sigma {votes.sigma:.1f}, largest count {votes.counts.max():.1f}",
            flush=True,
        )
        teacher, folder = votes.teacher(volunteers), work.folder / f"labels-{epsilon}"
        labels = extract_labels(teacher, volunteers, folder, LabelConfig(), seed=0)
        work.measure(
            name,
            volunteers,
            lambda seed: distill_model(
                STUDENT, volunteers, labels, FEW_USERS, DistillationConfig(0.5), seed=seed
            ),
        )


def _candidates(trained: TrainedModel, dataset: Dataset) -> NDArray[np.int64]:
    """Return the unseen items that a student puts first for each user, (users, CANDIDATES)."""
    users = np.arange(dataset.info.warm_users)
    histories = dataset.histories(users, dataset.train_end[users])
    scores = TorchScorer(with_features_of(trained, dataset)).scores(histories)
    for user in range(len(histories)):
        scores[user, histories.of(user)] = -np.inf
    return np.argsort(-scores, axis=1)[:, :CANDIDATES].astype(np.int64)


def write_results(work: Measurements, parts: tuple[str, ...], *, smaller: bool) -> None:
    """Print the table and the JSON line, and write both into `bench/results/`.

    smaller: whether these are not all members.
    """
    who = work.people
    lines = [
        f"MovieLens 1M, films with 200 ratings or more, {work.seeds} seeds; "
        f"{who.members.users:,} members, "
        f"{who.volunteers.users:,} volunteers, quality on "
        f"{len(questions(who.outsiders, 'test').histories):,} outsiders",
        "",
        "| student | NDCG@10 of outsiders | attack: AUC | found at 1% false alarms "
        "| by the web file: AUC | found |",
        "|---|---|---|---|---|---|",
    ]
    for row in work.rows:
        auc, found = np.mean(row["auc_by_seed"]), np.mean(row["found_by_seed"])
        told, caught = np.mean(row["file_auc_by_seed"]), np.mean(row["file_found_by_seed"])
        lines.append(
            f"| {row['model']} | {row['ndcg']} | {auc:.3f} | {found:.1%} "
            f"| {told:.3f} | {caught:.1%} |"
        )
    line = json.dumps({"bench": "privacy", "seeds": work.seeds, "rows": work.rows})
    print("\n".join(lines) + "\n" + line)
    RESULTS.mkdir(exist_ok=True)
    name = "privacy" if set(parts) == set(PARTS) else f"privacy-{'-'.join(parts)}"
    if smaller:
        name += f"-{who.members.users}-members"
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/privacy"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--members", type=int)
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    arguments = parser.parse_args()
    who = people(arguments.folder / "data", arguments.members)
    print(
        f"{who.volunteers.users:,} volunteers, {who.members.users:,} members, "
        f"{who.outsiders.users:,} outsiders",
        flush=True,
    )
    work = Measurements(who, arguments.folder, arguments.seeds)
    of_volunteers = measure_volunteers(work)
    if "private" in arguments.only:
        measure_private(work, of_volunteers, arguments.epsilons)
    if "plain" in arguments.only:
        measure_plain(work)
    if "votes" in arguments.only:
        measure_votes(work, of_volunteers)
    write_results(work, arguments.only, smaller=arguments.members is not None)


if __name__ == "__main__":
    main()
