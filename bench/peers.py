"""Quality against training time, beside the transformers of other libraries on the same split.

    python bench/peers.py [--dataset ml-100k] [--minutes 20] [--seeds 1] [--folder runs/peers]
        [--only NAME …]

Everyone trains on the same rows, without features, on one thread, for the same CPU time at most;
the settings of each are in `PEERS`. After each epoch the whole catalogue is ranked for all
validation users, which is not counted as training; the epoch is chosen on validation, the test part
is read for that epoch alone. A training that is finished is kept in the folder. Prints a table and
one JSON line, and writes both into `bench/results/`.

Needs what the extra `adapters` has, RecBole as the Makefile installs it, and for RecTools
`pip install pytorch-lightning`; peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distilrec import runs
from distilrec.data import Dataset
from distilrec.data.dataset import Histories
from distilrec.features.encoding import FeatureEncoder, FeatureMatrix
from distilrec.measure.metrics import ndcg
from distilrec.measure.ranking import Scorer, questions, rank
from distilrec.networks.build import build_model
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.transformer import TransformerConfig
from distilrec.runs.config import DataConfig, RunConfig
from distilrec.teachers import from_recbole, training_frame, write_atomic_file
from distilrec.training import trainer
from distilrec.training.options import TrainingConfig
from distilrec.training.scoring import GROUND_TRUTH, Objective

RESULTS = Path(__file__).parent / "results"
LENGTH = 200  # of histories, for everyone but RecBole
RECBOLE_LENGTH = 50  # its default; it trains on each prefix of a history by itself

Epochs = Iterator[tuple[Scorer, int]]
"""A scorer after each epoch, and how many weights it has."""


@dataclass(frozen=True)
class Size:
    """What the networks of a data set have. Ours have the sizes of the recipes."""

    student: RecurrentConfig
    transformer: TransformerConfig
    student_training: TrainingConfig
    transformer_training: TrainingConfig


SIZES = {
    "ml-100k": Size(
        RecurrentConfig(),
        TransformerConfig(),
        TrainingConfig(window=100, context=0.5),
        TrainingConfig(),
    ),
    "ml-1m": Size(
        RecurrentConfig(dim=64, scales=4),
        TransformerConfig(
            dim=96, layers=2, heads=4, feed_forward=256, dropout=0.2, max_history=200
        ),
        TrainingConfig(epochs=14, batch_size=8, averaging=0.998, context=0.5),
        TrainingConfig(epochs=20),
    ),
}


def ours(kind: str, dataset: Dataset, size: Size, seed: int, folder: Path) -> Epochs:
    config, training = {
        "student": (size.student, size.student_training),
        "transformer": (size.transformer, size.transformer_training),
    }[kind]
    model = build_model(config, dataset, seed)
    here = torch.device("cpu")
    steps = trainer._Training(
        model, dataset, Objective(GROUND_TRUTH), training, seed, here, torch.float32
    )
    for number in range(1, training.epochs + 1):
        steps.train_epoch(number)
        yield TorchScorer(steps.averaged), model.parameter_count()


def rectools(
    kind: str, batch_size: int, dataset: Dataset, size: Size, seed: int, folder: Path
) -> Epochs:
    """SASRec and HSTU with a softmax over the catalogue, as RecTools' own study of MovieLens has
    them, at the width of our transformer. Its batches of 128 users are few steps on a small log, so
    that smaller ones are tried too.
    """
    import pytorch_lightning as lightning
    from rectools.dataset import Dataset as Interactions
    from rectools.models import HSTUModel, SASRecModel

    lightning.seed_everything(seed, verbose=False)
    width = size.transformer.dim
    model = {"SASRec": SASRecModel, "HSTU": partial(HSTUModel, relative_time_attention=False)}[
        kind
    ](
        n_blocks=2,
        n_heads=size.transformer.heads,
        n_factors=width,
        session_max_len=LENGTH,
        dropout_rate=0.2,
        loss="softmax",
        lr=1e-3,
        batch_size=batch_size,
        epochs=1,
        deterministic=True,
        item_net_block_types=_only_ids(),
        get_trainer_func=_quiet_trainer,
    )
    frame = training_frame(dataset)
    interactions = Interactions.construct(frame)
    while True:
        model.fit_partial(interactions, min_epochs=1, max_epochs=1)
        network = model.torch_model.eval()
        known = model.data_preparator.item_id_map.to_internal
        ids = dataset.info.item_ids[: dataset.info.warm_items]
        # It keeps the newest events of each user alone, and forgets what is in no other
        numbers = known.reindex(ids, fill_value=-1).to_numpy()
        parameters = sum(weights.numel() for weights in network.parameters())
        yield _RecTools(network, numbers, dataset.catalogue_size), parameters


def recbole(kind: str, dataset: Dataset, size: Size, seed: int, folder: Path) -> Epochs:
    """SASRec with a softmax over the catalogue, otherwise with RecBole's defaults."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    write_atomic_file(dataset, folder, "log")
    settings = {
        "data_path": str(folder), "checkpoint_dir": str(folder),
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": RECBOLE_LENGTH, "train_neg_sample_args": None, "loss_type": "CE",
        "seed": seed, "use_gpu": False, "show_progress": False, "state": "ERROR",
        "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"},
    }  # fmt: skip
    config = Config(model="SASRec", dataset="log", config_dict=settings)
    init_seed(seed, reproducibility=True)
    logging.getLogger().setLevel(logging.ERROR)
    data = create_dataset(config)
    training, _, _ = data_preparation(config, data)
    model = SASRec(config, training.dataset)
    trainer = Trainer(config, model)
    parameters, epoch = sum(weights.numel() for weights in model.parameters()), 0
    while True:
        model.train()
        trainer._train_epoch(training, epoch, show_progress=False)  # its `fit` validates in between
        epoch += 1
        scorer = from_recbole(model, data, dataset, identity="SASRec", length=RECBOLE_LENGTH)
        yield scorer, parameters


PEERS: dict[str, Callable[[Dataset, Size, int, Path], Epochs]] = {
    "distilrec student, no distillation": partial(ours, "student"),
    "distilrec transformer": partial(ours, "transformer"),
    "RecTools SASRec": partial(rectools, "SASRec", 128),
    "RecTools SASRec, batches of 16": partial(rectools, "SASRec", 16),
    "RecTools HSTU, no times, batches of 16": partial(rectools, "HSTU", 16),
    "RecBole SASRec": partial(recbole, "SASRec"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="ml-100k", choices=list(SIZES))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"))
    parser.add_argument("--only", nargs="+", default=list(PEERS), choices=list(PEERS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = arguments.folder / arguments.dataset
    _, dataset = runs.prepare(
        RunConfig(DataConfig(dataset=arguments.dataset)), folder / "data", runs.Lines()
    )
    dataset = without_features(dataset)
    cells, missing = [], []
    for seed in range(arguments.seeds):
        for name in arguments.only:
            try:
                cells.append(measured(name, dataset, arguments, seed, folder))
            except ImportError as problem:
                missing.append(f"{name} ({problem})")
    write(arguments, cells, missing)


def measured(
    name: str, dataset: Dataset, arguments: argparse.Namespace, seed: int, folder: Path
) -> dict[str, Any]:
    """Train one peer for its minutes, or return what a finished training has left."""
    kept = folder / f"{name} {seed} {arguments.minutes:g}.json"
    if kept.exists():
        cell: dict[str, Any] = json.loads(kept.read_text())
        return cell
    own = folder / f"{name} {seed}"
    own.mkdir(parents=True, exist_ok=True)
    epochs = PEERS[name](dataset, SIZES[arguments.dataset], seed, own)
    seconds, curve, best, test, parameters = 0.0, [], 0.0, 0.0, 0
    while seconds < 60 * arguments.minutes:
        began = time.process_time()
        scorer, parameters = next(epochs, (None, parameters))
        if scorer is None:  # our own have a last epoch
            break
        seconds += time.process_time() - began
        quality = of_part(scorer, dataset, "validation")
        curve.append((round(seconds, 1), round(quality, 4)))
        print(
            f"{name}, seed {seed}: epoch {len(curve)}, {seconds:.0f} s, {quality:.4f}", flush=True
        )
        if quality > best:
            best, test = quality, of_part(scorer, dataset, "test")
    cell = {
        "name": name,
        "seed": seed,
        "parameters": parameters,
        "validation": best,
        "test": test,
        "curve": curve,
    }
    kept.write_text(json.dumps(cell))
    return cell


def of_part(scorer: Scorer, dataset: Dataset, part: Any) -> float:
    """Return the mean NDCG@10."""
    return float(ndcg(rank(scorer, questions(dataset, part), depth=0), 10).mean())


def without_features(dataset: Dataset) -> Dataset:
    """Return the same log over the same catalogue, of which nothing is known."""

    def nothing(rows: int) -> FeatureMatrix:
        return FeatureMatrix(np.zeros((rows, 0), np.int32), np.zeros((rows, 0), np.float32), 0)

    return replace(
        dataset,
        info=msgspec.structs.replace(
            dataset.info, user_encoder=FeatureEncoder(), item_encoder=FeatureEncoder()
        ),
        user_features=nothing(dataset.user_features.rows),
        item_features=nothing(dataset.item_features.rows),
    )


@dataclass(frozen=True)
class _RecTools:
    """Scores of a network of RecTools; numbers: (warm items,), what it calls them, -1 for one that
    it does not know.
    """

    network: Any
    numbers: NDArray[np.int64]
    catalogue: int

    @torch.inference_mode()
    def scores(self, histories: Histories) -> NDArray[np.float32]:
        sessions = np.zeros((len(histories), LENGTH), np.int64)
        for k in range(len(histories)):
            items = histories.of(k)
            latest = self.numbers[items[items < len(self.numbers)]]
            latest = latest[latest >= 0][-LENGTH:]
            sessions[k, LENGTH - len(latest) :] = latest
        vectors = self.network.item_model.get_all_embeddings()
        found = np.full((len(histories), self.catalogue), -np.inf, np.float32)
        for start in range(0, len(histories), 64):
            batch = {"x": torch.from_numpy(sessions[start : start + 64])}
            states = self.network.encode_sessions(batch, vectors)[:, -1]
            logits = (states @ vectors.T).numpy()
            found[start : start + 64, : len(self.numbers)] = logits[:, self.numbers]
        found[:, : len(self.numbers)][:, self.numbers < 0] = -np.inf
        found[~np.isfinite(found)] = found[np.isfinite(found)].min()
        return found


def _only_ids() -> tuple[Any, ...]:
    from rectools.models.nn.item_net import IdEmbeddingsItemNet

    return (IdEmbeddingsItemNet,)


def _quiet_trainer() -> Any:
    from pytorch_lightning import Trainer

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        deterministic=True,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )


def write(arguments: argparse.Namespace, cells: list[dict[str, Any]], missing: list[str]) -> None:
    """Print the table and the JSON line, and write both into `bench/results/`."""
    lines = [
        f"{arguments.dataset}, NDCG@10 without features, one thread, at most "
        f"{arguments.minutes:g} minutes of CPU each; seconds: of training until 90% of our "
        "student's best validation figure, and until a peer's own best",
        "",
        "| model | seed | parameters | validation | test | epochs | seconds to 90% | to its best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    goals = {cell["seed"]: 0.9 * cell["validation"] for cell in cells if "student" in cell["name"]}
    for cell in cells:
        goal = goals.get(cell["seed"], float("inf"))
        reached = [seconds for seconds, value in cell["curve"] if value >= goal]
        own = max(cell["curve"], key=lambda point: point[1])[0]
        lines.append(
            f"| {cell['name']} | {cell['seed']} | {cell['parameters']:,} "
            f"| {cell['validation']:.4f} | {cell['test']:.4f} | {len(cell['curve'])} "
            f"| {f'{reached[0]:.0f}' if reached else 'not reached'} | {own:.0f} |"
        )
    lines += ["", *(f"Not installed: {name}" for name in missing)]
    line = json.dumps({"bench": "peers", "minutes": arguments.minutes, "cells": cells})
    print("\n" + "\n".join(lines) + "\n\n" + line)
    (RESULTS / f"peers-{arguments.dataset}.md").write_text("\n".join(lines).rstrip() + "\n")
    (RESULTS / f"peers-{arguments.dataset}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
