"""Unfinished trainings on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import torch

from distilrec.errors import TrainingError
from distilrec.files import RecordKind, remove
from distilrec.networks.sequence import SequenceModel
from distilrec.training.options import Epoch, TrainingConfig


class Progress(msgspec.Struct, frozen=True):
    """The part of a checkpoint that is not a tensor."""

    seed: int
    config: TrainingConfig
    task: str
    curve: tuple[Epoch, ...]
    best_epoch: int

    def belongs_to(self) -> tuple[int, TrainingConfig, str]:
        """Return what must be the same where a training is resumed."""
        return self.seed, self.config, self.task


_CHECKPOINT = RecordKind(
    "progress.json",
    Progress,
    ("epoch",),
    1,
    TrainingError,
    what="checkpoint",
    fix="begin without one",
    again="delete {folder} to begin again",
)


def save_checkpoint(
    folder: Path,
    model: SequenceModel,
    averaged: SequenceModel,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
    progress: Progress,
) -> None:
    """Write all that an interrupted training needs to go on, whole or not at all. Tensors of any
    device are kept as arrays, so that the training can go on on another one.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"averaged/{name}": tensor for name, tensor in averaged.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
    _CHECKPOINT.write(
        folder,
        progress,
        {"epoch": {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}},
    )


def is_checkpoint(folder: Path) -> bool:
    """Return whether an unfinished training was kept in this folder."""
    return (folder / _CHECKPOINT.file).is_file()


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that is no longer needed, the file that makes it one first."""
    if folder.is_dir():
        remove([folder / _CHECKPOINT.file])
        shutil.rmtree(folder)


def load_checkpoint(
    folder: Path,
    model: SequenceModel,
    averaged: SequenceModel,
    optimizer: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
    expected: Progress,
) -> Progress:
    """Load a checkpoint into models and optimizer, on the device where they are.

    Raises TrainingError where it is damaged, or of another seed, configuration or task than
    `expected`.
    """
    saved = _CHECKPOINT.read(folder)
    progress = saved.about
    tensors = {name: torch.from_numpy(array) for name, array in saved.arrays("epoch").items()}
    if progress.belongs_to() != expected.belongs_to():
        raise TrainingError(
            f"the checkpoint in {folder} belongs to a run with another seed, configuration or "
            "data set",
            fix=f"delete {folder} to begin again, or use the configuration it was made with",
            file=str(folder),
        )
    try:
        model.load_state_dict(_under("model/", tensors))
        averaged.load_state_dict(_under("averaged/", tensors))
    except RuntimeError:  # torch's word for names or shapes that do not fit
        raise TrainingError(
            f"the checkpoint in {folder} was made by another version of distilrec",
            fix=f"delete {folder} to begin again",
            file=str(folder),
        ) from None
    best.update(_under("best/", tensors))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return progress


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
