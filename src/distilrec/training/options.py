"""How a network is trained, under which circumstances, and the record of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from distilrec.errors import ConfigError
from distilrec.progress import Progress, Silent
from distilrec.settings import Count, NotNegative, Part, Positive, Settings, Share, ZeroOrMore
from distilrec.workers import InProcess, Workers


class TrainingConfig(Settings, frozen=True):
    """How a network is trained (AdamW)."""

    epochs: Count = 40
    """Maximum number of epochs; the learning rate falls over all of them."""
    patience: Count = 6
    """Epochs without a better validation NDCG@10 after which the training stops."""
    validation_users: ZeroOrMore = 20_000
    """Maximum number of validation users on whom epochs are compared, drawn once by seed; the epoch
    that is kept is measured on all of them. 0 is always all.
    """
    batch_size: Count = 32
    """Windows in a batch."""
    learning_rate: Part = 2e-3
    """Highest learning rate."""
    weight_decay: NotNegative = 0.01
    """Weight decay of AdamW."""
    warmup_steps: ZeroOrMore = 50
    """Steps in which the learning rate rises."""
    clip_norm: Positive = 1.0
    """Longest gradient of a step."""
    averaging: Share = 0.995
    """Share that stays, at each step, in the moving average of the weights, which is what is kept;
    0 is off.
    """
    window: ZeroOrMore = 0
    """Events of a training window; 0 and what is above it is the network's `max_history`."""
    context: Share = 0.5
    """Share of a window that is only seen: its events are scored in another window. With 0 a long
    history is cut into pieces, and the first event of a piece is predicted from an empty state.
    """
    positions: ZeroOrMore = 0
    """Maximum number of positions of a batch that are scored, drawn at random; 0 is all."""
    negatives: ZeroOrMore = 0
    """Items of a sampled softmax, drawn by popularity for each step; 0 scores the whole catalogue.
    """
    mask_seen: bool = True
    """Whether items of the history are left out of the softmax; always off where the log has
    repeats.
    """
    item_dropout: Share = 0.0
    """Share of items whose own vector is left out in a step, so that features learn to stand for
    them.
    """


class Epoch(msgspec.Struct, frozen=True):
    """One line of the learning curve. validation_ndcg: over the users on whom epochs are compared;
    seconds: since the beginning, training and validation; asked: those of them in which a teacher
    was asked for labels.
    """

    epoch: int
    loss: float
    validation_ndcg: float
    seconds: float
    asked: float = 0.0

    def note(self) -> str:
        """Return the loss and the validation quality, to be shown beside the progress."""
        return f"loss {self.loss:.3f}, validation NDCG@10 {self.validation_ndcg:.4f}"


PRECISIONS = ("auto", "float32", "bf16")


def check_precision(name: str) -> None:
    """Raise ConfigError for the name of an unknown precision."""
    if name not in PRECISIONS:
        raise ConfigError(
            f"{name!r} is not a precision",
            fix="use one of " + ", ".join(f'"{known}"' for known in PRECISIONS),
            parameter="precision",
        )


OnEpoch = Callable[[Epoch, int], None]
Result = TypeVar("Result")


def _ignore(epoch: Epoch, total: int) -> None:
    pass


@dataclass(frozen=True)
class RunOptions:
    """The circumstances of a training or an extraction: where and by which processes it is done,
    and who follows it. They are never a part of what identifies a model; the seed is, and is an
    argument of its own.

    device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
    precision: "float32", "bf16" (matrix products of a training step are computed in bfloat16, while
    weights, validation and labels stay float32) or "auto" (bf16 on a CUDA device that has it in
    hardware, else float32). An unknown one raises ConfigError.
    checkpoint: a folder; an unfinished training found there is resumed. workers: run what can be
    cut into shards or shared. progress: hears of the stages. on_epoch: is called with each finished
    epoch and the total number of epochs.
    """

    device: str = "auto"
    precision: str = "auto"
    checkpoint: Path | None = None
    workers: Workers = field(default_factory=InProcess)
    progress: Progress = field(default_factory=Silent)
    on_epoch: OnEpoch = _ignore

    def __post_init__(self) -> None:
        check_precision(self.precision)

    def device_of_shards(self) -> str:
        """Return the name of the device for the shards of a stage: on the workers of a cluster,
        which share their machines, "auto" is the CPU.
        """
        alone = isinstance(self.workers, InProcess)
        return self.device if alone or self.device != "auto" else "cpu"

    def train_together(self, make: Callable[..., Result], first: OnEpoch | None = None) -> Result:
        """Return make(options=...), called on all workers together with the part of these options
        that can be sent to another process. first: is called here with each epoch, before
        `on_epoch`.
        """
        inside = RunOptions(self.device, self.precision, self.checkpoint)

        def report(epoch: Epoch, total: int) -> None:
            if first is not None:
                first(epoch, total)
            self.on_epoch(epoch, total)

        return self.workers.together(
            lambda on_epoch: make(options=replace(inside, on_epoch=on_epoch)), report
        )


@dataclass(frozen=True)
class TrainingResult:
    """The learning curve and the best epoch, whose weights the model now has; 0 where these are the
    earlier weights that the training began with. validation_ndcg: of these weights, over all
    validation users, where the curve is that of a sample or has no such epoch.
    """

    curve: tuple[Epoch, ...]
    best_epoch: int
    validation_ndcg: float | None = None
