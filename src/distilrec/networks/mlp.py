"""The `mlp` student: (user features, item features) -> preference, the classic small network.

    u   = mean of the history's v_i + U f_u,   v_i = E_i + F f_i
    s_i = w . relu(A u + B v_i + c) + b_i

`B v_i` is computed for all items at export, so that serving costs one pass over an (items, hidden)
matrix.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from distilrec.data.dataset import Dataset
from distilrec.networks.batches import Batch
from distilrec.networks.on_cpu import dropout
from distilrec.networks.sequence import causal_mean
from distilrec.networks.student import Range, Student, StudentSettings
from distilrec.settings import Count, Share


class MlpConfig(StudentSettings, frozen=True, tag="mlp"):
    """A small network over user features and the averaged history."""

    dim: Count = 16
    """Channels of an item vector."""
    hidden: Count = 32
    """Units of the hidden layer."""
    dropout: Share = 0.2
    """Share of channels that are set to 0 at random in training."""
    max_history: Count = 200
    """Latest events of a user that the model looks at."""


class Mlp(Student):
    settings = MlpConfig
    space: ClassVar = {"hidden": Range(8, 128, log=True)}

    def __init__(self, dataset: Dataset, config: MlpConfig) -> None:
        super().__init__(dataset, config)
        self._set_up(dataset, config)
        self.state_dim = config.hidden
        self.user_layer = nn.Linear(config.dim, config.hidden)  # A, c
        self.item_layer = nn.Linear(config.dim, config.hidden, bias=False)  # B
        self.readout = nn.Parameter(torch.randn(config.hidden) / config.hidden**0.5)  # w

    def encode(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        x = self.look_up(batch, vectors)  # (batch, length, dim)
        x = dropout(x, self.dropout, self.training)
        user = causal_mean(x, batch, self.items.catalogue_size) + self.user_features(
            batch.users
        ).unsqueeze(1)
        hidden: torch.Tensor = self.user_layer(user)
        return hidden  # (batch, length, hidden)

    def most_positions(self) -> int:
        """Keep the (positions, items, hidden) tensor of `score` at about 2^25 floats (128 MiB)."""
        return max(32, 2**25 // (self.items.catalogue_size * len(self.readout)))

    def score(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # (positions, items, hidden)
        pairs = torch.relu(hidden.unsqueeze(1) + self.item_layer(vectors))
        return pairs @ self.readout + biases

    def score_own(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor,
    ) -> torch.Tensor:
        own: torch.Tensor = torch.relu(hidden + self.item_layer(vectors)) @ self.readout + biases
        return own

    def arrays(self) -> dict[str, torch.Tensor]:
        return {
            "user_layer": self.user_layer.weight,
            "user_layer_bias": self.user_layer.bias,
            "item_layer": self.item_layer.weight,
            "readout": self.readout,
        }
