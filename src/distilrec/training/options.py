"""How a network is trained, and the record of a training."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from distilrec.settings import Count, NotNegative, Part, Positive, Settings, Share, ZeroOrMore


class TrainingConfig(Settings, frozen=True):
    """How a network is trained (AdamW)."""

    epochs: Count = 40
    """Maximum number of epochs; the learning rate falls over all of them."""
    patience: Count = 6
    """Epochs without a better validation NDCG@10 after which the training stops."""
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
