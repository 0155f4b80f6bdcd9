"""What teachers and students have in common: a catalogue of item vectors and a state after each
event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset, Histories
from distilrec.features.encoding import FeatureMatrix
from distilrec.networks.batches import Batch, prediction_batch

# Histories at once: on the CPU so many that their tensors stay in its caches
_CPU_BATCH, _BATCH = 32, 256
_MOST_DENSE = 2**21  # floats of the features, in place of their columns


class FeatureProjection(nn.Module):
    """`F f`: the sum of one learned vector per feature column, weighted by the encoded features."""

    columns: torch.Tensor
    weights: torch.Tensor
    dense: torch.Tensor | None

    def __init__(self, features: FeatureMatrix, dim: int) -> None:
        super().__init__()
        self.register_buffer(
            "columns", torch.from_numpy(features.columns.astype(np.int64)), persistent=False
        )
        self.register_buffer("weights", torch.from_numpy(features.weights), persistent=False)
        # Without the zeros left out, where that is small: then one matrix product is the sum
        small = len(features.columns) * features.width <= _MOST_DENSE
        dense = torch.from_numpy(features.dense()) if small else None
        self.register_buffer("dense", dense, persistent=False)
        self.table = nn.Parameter(0.02 * torch.randn(features.width, dim))

    def forward(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        if self.dense is not None:
            return (self.dense if rows is None else self.dense[rows]) @ self.table
        columns, weights = self.columns, self.weights
        if rows is not None:
            columns, weights = columns[rows], weights[rows]
        if columns.shape[1] == 0:
            return self.table.new_zeros(columns.shape[0], self.table.shape[1])
        # (rows, dim)
        return functional.embedding_bag(columns, self.table, per_sample_weights=weights, mode="sum")


class ItemTower(nn.Module):
    """Item vectors `v_i = E_i + F f_i` and biases `b_i`; an item without training rows has v_i = F
    f_i, b_i = min b.
    """

    def __init__(self, dataset: Dataset, dim: int) -> None:
        super().__init__()
        self.warm_items = dataset.info.warm_items
        self.catalogue_size = dataset.catalogue_size
        self.embedding = nn.Parameter(0.05 * torch.randn(self.warm_items, dim))
        self.features = FeatureProjection(dataset.item_features, dim)
        # Among some of the users (`Dataset.select_users`) an item may have no row
        popularity = np.maximum(dataset.popularity()[: self.warm_items], 1)
        counts = torch.from_numpy(popularity.astype(np.float32))
        self.bias = nn.Parameter(
            torch.log(counts / counts.sum()) - torch.log(counts / counts.sum()).mean()
        )

    def vectors(self, left_out: float = 0.0) -> torch.Tensor:
        """Return the vectors of the whole catalogue, (items, dim) float32.

        left_out: the share of items, drawn at each call, whose E_i is left out, as if they had no
        training rows; then the features learn to stand for an item (DropoutNet, Volkovs et al.
        2017, sec. 4).
        """
        embedding: torch.Tensor = self.embedding
        if left_out:
            embedding = embedding * (
                torch.rand(self.warm_items, 1, device=embedding.device) >= left_out
            )
        embedding = functional.pad(embedding, (0, 0, 0, self.catalogue_size - self.warm_items))
        vectors: torch.Tensor = embedding + self.features()
        return vectors

    def biases(self) -> torch.Tensor:
        """Return the biases of the whole catalogue, (items,) float32."""
        cold = self.bias.min().expand(self.catalogue_size - self.warm_items)
        return torch.cat([self.bias, cold])


def with_padding(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors with a zero vector behind the last item, (items + 1, dim): it is what the
    start token and padding look up.
    """
    return functional.pad(vectors, (0, 0, 0, 1))


def causal_mean(x: torch.Tensor, batch: Batch, padding: int) -> torch.Tensor:
    """Return the mean of the item vectors seen up to each position, (batch, length, dim); zero
    before the first item.
    """
    seen = (batch.items != padding).unsqueeze(-1).to(x.dtype).cumsum(1)
    return x.cumsum(1) / seen.clamp(min=1.0)


class Sizes(Protocol):
    """The settings that most networks have."""

    @property
    def dim(self) -> int: ...

    @property
    def dropout(self) -> float: ...

    @property
    def max_history(self) -> int: ...


class SequenceModel(nn.Module, ABC):
    """f(x) = sigma(W1 h1 + b1): `encode` gives h1 after each event, `score` gives the logits over
    items.

    Subclasses implement `encode` and may replace `score`; `items` is the tower that both share.
    """

    items: ItemTower
    user_features: FeatureProjection
    max_history: int
    # Channels of the states that `encode` gives; what `score` needs besides may stand behind them
    state_dim: int
    # Whether its weights can be taken over to data that have grown (`distilrec.training.warm`)
    grows: ClassVar[bool] = True
    # Of the items of each event type in a history, (types,); None where no type is negative
    signs: torch.Tensor | None

    def _set_up(self, dataset: Dataset, config: Sizes) -> None:
        """Make what most networks begin with: items, users and states of `config.dim` channels."""
        self.max_history = config.max_history
        self.dropout = config.dropout
        self.state_dim = config.dim
        self._set_signs(dataset)
        self.items = ItemTower(dataset, config.dim)
        self.user_features = FeatureProjection(dataset.user_features, config.dim)

    def _set_signs(self, dataset: Dataset) -> None:
        signs = None if dataset.roles is None else dataset.roles.signs
        self.register_buffer(
            "signs", None if signs is None else torch.from_numpy(signs), persistent=False
        )

    def look_up(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Return the vectors of the items of a batch, (batch, length, dim): those of negative
        events with the opposite sign, zero for the start token and padding.
        """
        x = functional.embedding(batch.items, with_padding(vectors))
        return x if self.signs is None else x * self.signs[batch.events].unsqueeze(-1)

    @abstractmethod
    def encode(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        """Return the state at every position, (batch, length, dim); `vectors` is
        `items.vectors()`, (items, dim).
        """

    def encode_at(
        self, batch: Batch, vectors: torch.Tensor, window: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Return the state at some positions, (positions, dim); a network that can do without the
        others does.

        window, place: (positions,) int64, where each stands in the batch.
        """
        return self.encode(batch, vectors)[window, place]

    def begin(self, dataset: Dataset) -> None:
        """Take what a network has from the training rows besides weights that are learned."""

    def score(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits of the given items, (positions, items), from states (positions, dim).

        items: which these are, (items,) int64, None for the first of the catalogue.
        """
        return functional.linear(hidden, vectors, biases)

    def score_own(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor,
    ) -> torch.Tensor:
        """Return logits of items that differ by state: states and vectors are (…, dim), biases and
        items (…), which broadcast.
        """
        return (hidden * vectors).sum(-1) + biases

    def penalty(self) -> torch.Tensor:
        """Return what training adds to the loss of the batch that was encoded last, a scalar."""
        return torch.zeros((), device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are; batches and labels must be there too."""
        return self.items.embedding.device

    def most_positions(self) -> int:
        """Return how many positions fit into memory when all items are scored; 0 is any number."""
        return 0

    def parameter_count(self) -> int:
        """Return the number of trained floats."""
        return sum(parameter.numel() for parameter in self.parameters())


class TorchScorer:
    """Scores of a model over the whole catalogue, in inference mode; item vectors are computed
    once, when it is made.
    """

    def __init__(self, model: SequenceModel) -> None:
        self.model = model
        with torch.inference_mode():
            self.vectors, self.biases = model.items.vectors(), model.items.biases()

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Return logits, (batch, items) float32."""
        model = self.model
        was_training = model.training
        model.eval()
        # Histories of one length stand together, so that few places are padding
        order = np.argsort(np.diff(histories.offsets), kind="stable")
        logits = np.zeros((len(histories), model.items.catalogue_size), np.float32)
        size = _CPU_BATCH if model.device.type == "cpu" else _BATCH
        with torch.inference_mode():
            for start in range(0, len(order), size):
                users = order[start : start + size]
                part = histories.take(users)
                batch = prediction_batch(part, model.items.catalogue_size, model.max_history).to(
                    model.device
                )
                last = (batch.targets == 0).nonzero(as_tuple=True)
                hidden = model.encode_at(batch, self.vectors, *last)
                logits[users] = model.score(hidden, self.vectors, self.biases).float().cpu().numpy()
        model.train(was_training)
        return logits
