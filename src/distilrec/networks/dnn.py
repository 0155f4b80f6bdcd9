"""The `dnn` teacher: a deep network over user features and the history, against item vectors with
item features.

The tower of Covington et al. 2016 (candidate generation): averaged history beside user features,
then dense layers.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from distilrec.data.dataset import Dataset
from distilrec.networks.batches import Batch
from distilrec.networks.on_cpu import Dropout, dropout
from distilrec.networks.sequence import SequenceModel, causal_mean
from distilrec.settings import Count, Settings, Share


class DnnConfig(Settings, frozen=True, tag="dnn", tag_field="kind"):
    """A deep network over user features and the averaged history."""

    dim: Count = 64
    """Channels of an item vector."""
    hidden: Count = 512
    """Units of a hidden layer."""
    layers: Count = 3
    """Number of hidden layers."""
    dropout: Share = 0.3
    """Share of channels that are set to 0 at random in training."""
    max_history: Count = 200
    """Latest events of a user that the model looks at."""


class Dnn(SequenceModel):
    """h1 = dense(user features, mean of the history, last item); logits = W1 h1 + b1."""

    def __init__(self, dataset: Dataset, config: DnnConfig) -> None:
        super().__init__()
        self._set_up(dataset, config)
        widths = [3 * config.dim, *[config.hidden] * config.layers]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), Dropout(config.dropout)]
        self.dense = nn.Sequential(
            *layers, nn.Linear(widths[-1], config.dim), nn.LayerNorm(config.dim)
        )

    def encode(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        x = self.look_up(batch, vectors)  # (batch, length, dim)
        x = dropout(x, self.dropout, self.training)
        user = self.user_features(batch.users).unsqueeze(1).expand_as(x)
        hidden: torch.Tensor = self.dense(
            torch.cat([user, causal_mean(x, batch, self.items.catalogue_size), x], dim=-1)
        )
        return hidden
