"""Trained models: weights of the best epoch with their record, on disk and in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.bundle.privacy import PrivacyRecord
from distilrec.data.dataset import Dataset, DatasetInfo
from distilrec.errors import TrainingError
from distilrec.files import RecordKind
from distilrec.networks.build import ModelConfig, build_model
from distilrec.networks.sequence import SequenceModel
from distilrec.training.options import Epoch, RunOptions, TrainingConfig, TrainingResult
from distilrec.training.scoring import GROUND_TRUTH, Objective
from distilrec.training.trainer import train
from distilrec.training.warm import Start, carried_over


class ModelRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a trained model besides its weights. best_epoch: 0 where no epoch was better
    than the earlier weights that it began with. validation_ndcg: over all validation users, where
    the curve is that of a sample or has no such epoch.
    """

    config: ModelConfig
    seed: int
    dataset_fingerprint: str
    curve: tuple[Epoch, ...]
    best_epoch: int
    identity: str = ""
    privacy: PrivacyRecord | None = None
    validation_ndcg: float | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of its best epoch, and its record."""

    model: SequenceModel
    record: ModelRecord

    @property
    def best_ndcg(self) -> float:
        """Validation NDCG@10 of the epoch that was kept, over all validation users."""
        if self.record.validation_ndcg is not None:
            return self.record.validation_ndcg
        return self.record.curve[self.record.best_epoch - 1].validation_ndcg

    @property
    def seconds(self) -> float:
        """Training time, wall clock."""
        return self.record.curve[-1].seconds

    @property
    def seconds_asked(self) -> float:
        """The part of the training time in which a teacher was asked for labels."""
        return self.record.curve[-1].asked


def finished(
    model: SequenceModel, config: ModelConfig, seed: int, dataset: Dataset, result: TrainingResult
) -> TrainedModel:
    """Return a trained model with its identity."""
    record = ModelRecord(
        config,
        seed,
        dataset.fingerprint(),
        result.curve,
        result.best_epoch,
        validation_ndcg=result.validation_ndcg,
    )
    return _identified(model, record)


def _identified(model: SequenceModel, record: ModelRecord) -> TrainedModel:
    """Return a model with its identity: a hash of weights, configuration and data set."""
    digest = hashlib.sha256(msgspec.json.encode((record.config, record.dataset_fingerprint)))
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return TrainedModel(model, msgspec.structs.replace(record, identity=digest.hexdigest()[:16]))


def train_model(
    config: ModelConfig,
    dataset: Dataset,
    training: TrainingConfig,
    *,
    seed: int,
    options: RunOptions | None = None,
    start: Start | None = None,
) -> TrainedModel:
    """Train a teacher, or a student without distillation, on the ground truth alone.

    start: the weights that the training begins with, and whose windows it sees; fresh weights and
    all windows by default.
    """
    model = build_model(config, dataset, seed)
    if start is not None:
        start.load(model)
    result = train(
        model,
        dataset,
        Objective(GROUND_TRUTH, trained_from=None if start is None else start.trained_from),
        training,
        seed=seed,
        task=training_task(dataset, config, "" if start is None else start.key),
        options=options,
    )
    return finished(model, config, seed, dataset, result)


def training_task(dataset: Dataset, config: ModelConfig, more: str = "") -> str:
    """Return what a checkpoint belongs to: other data, configuration or losses are another task."""
    return f"{dataset.fingerprint()} {msgspec.json.encode(config).decode()} {more}"


SAVED = RecordKind(
    "model.json",
    ModelRecord,
    ("model",),
    1,
    TrainingError,
    what="trained model",
    fix="train it first (distilrec train, distilrec distill)",
    again="delete {folder} and train the model again",
)


def save_model(trained: TrainedModel, folder: Path, made_from: str = "") -> None:
    """Write `model.json` and the weights that it names, in the place of the model that is there.

    made_from: a key of everything that the training depends on.
    """
    tensors = {
        name: tensor.cpu().contiguous().numpy()
        for name, tensor in trained.model.state_dict().items()
    }
    SAVED.write(folder, trained.record, {"model": tensors}, made_from=made_from)


def load_model(folder: Path, dataset: Dataset) -> TrainedModel:
    """Return a saved model. Raises FileMissingError, and TrainingError when it is damaged or was
    trained on other data.
    """
    saved = SAVED.read(folder)
    record = saved.about
    if record.dataset_fingerprint != dataset.fingerprint():
        raise TrainingError(
            f"the model in {folder} was trained on another data set",
            fix="train it again after `distilrec prepare`",
            file=str(folder),
        )
    model = build_model(record.config, dataset, record.seed)
    try:
        model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in saved.arrays("model").items()}
        )
    except RuntimeError:  # torch's word for names or shapes that do not fit
        raise TrainingError(
            f"the model in {folder} was made by another version of distilrec",
            fix=f"delete {folder} and train it again",
        ) from None
    model.eval()
    return TrainedModel(model, record)


@dataclass(frozen=True)
class Earlier:
    """A trained model, or a teacher of some, with which a training on grown data begins.

    folder: where it is; info: of the data that it was trained on; trained_from: (users,), the row
    of each user of the grown data before which none is trained; key: what all of it follows from;
    refit: whether what is in closed form is fitted again; asked: False for a member of an ensemble
    that is not asked, and so stays as it was.
    """

    folder: Path
    info: DatasetInfo
    trained_from: NDArray[np.int64]
    key: str
    refit: bool = True
    asked: bool = True

    def member(self, number: int, weight: float) -> Earlier:
        """Return a member of an ensemble. weight: what it has there."""
        folder = self.folder / f"member-{number}"
        return replace(self, folder=folder, asked=self.asked and weight > 0)

    def marks(self) -> list[str]:
        """Return what a training with it depends on."""
        marks = {"not fitted": self.refit, "not asked": self.asked}
        return [self.key, *(mark for mark, usual in marks.items() if not usual)]

    def carried(self, dataset: Dataset) -> TrainedModel:
        """Return the model itself on grown data, not trained further. Raises as `start` does."""
        about, start = SAVED.read(self.folder).about, self.start(dataset)
        model = build_model(about.config, dataset, about.seed)
        start.load(model)
        model.begin(dataset)
        model.eval()
        fingerprint = dataset.fingerprint()
        return _identified(model, msgspec.structs.replace(about, dataset_fingerprint=fingerprint))

    def start(self, dataset: Dataset) -> Start:
        """Return what the training of the same model on grown data begins with. Raises
        FileMissingError, and TrainingError where the earlier model is damaged or does not fit.
        """
        saved = SAVED.read(self.folder)
        fresh = build_model(saved.about.config, dataset, saved.about.seed)
        weights = carried_over(saved.arrays("model"), fresh, self.info, dataset.info)
        return Start(weights, self.trained_from, self.key)
