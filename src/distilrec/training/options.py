"""How a network is trained, and the record of a training."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from distilrec.settings import Count, NotNegative, Part, Positive, Settings, Share, ZeroOrMore


class TrainingConfig(Settings, frozen=True):
    """epochs: at most this many; patience: stop after so many epochs without a better validation NDCG@10.

    averaging: validate and keep an exponential moving average of the weights, of which this share stays at each step
    (Polyak & Juditsky 1992); 0 keeps the weights themselves.
    positions: at most this many positions of a batch are scored, drawn at random (0: all of them).
    negatives: 0 scores the whole catalogue; otherwise the softmax is over the target and so many items drawn by
    popularity for each step, with the logQ correction; distillation then scores these and the items of the labels.
    item_dropout: the share of items whose own vector is left out in a step, so that the features carry what they can: for
    catalogues where new items are the norm.
    mask_seen: leave items of the history out of the softmax, as they are left out of recommendations; ignored where the
    log has repeats.
    """

    epochs: Count = 40
    patience: Count = 6
    batch_size: Count = 32
    learning_rate: Part = 2e-3
    weight_decay: NotNegative = 0.01
    warmup_steps: ZeroOrMore = 50
    clip_norm: Positive = 1.0
    averaging: Share = 0.995
    positions: ZeroOrMore = 0
    negatives: ZeroOrMore = 0
    mask_seen: bool = True
    item_dropout: Share = 0.0


class Epoch(msgspec.Struct, frozen=True):
    """One line of the learning curve. seconds: since the beginning, training and validation."""

    epoch: int
    loss: float
    validation_ndcg: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """The learning curve and the best epoch, whose weights the model now has."""

    curve: tuple[Epoch, ...]
    best_epoch: int
