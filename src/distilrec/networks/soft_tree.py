"""The `soft_tree` student: a soft decision tree over readable inputs, for people who must read the
model.

    h_t = a h_{t-1} + (1 - a) X_i                               the state
    p_n = sigmoid(w_n . h + u_n . f_u + c_n)                    probability that gate n goes right
    pi_l = product over the path to leaf l of p_n or 1 - p_n    z, the path probabilities
    s_i = log sum_l pi_l softmax_i(phi_l + b)                   the score

The state holds what the user had lately and in general (two fixed decays). X_i are the features of
an item and, for the most popular items, the item itself. Every leaf holds one distribution over the
catalogue.

Frosst & Hinton 2017, eq. 1, 2 and 5 (their inverse temperature is part of w). The penalty on gates
that send everybody one way is their eq. 8. phi is an item tower with one channel per leaf, so that
new items have a score in every leaf by their features.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.networks.batches import Batch, prediction_batch
from distilrec.networks.on_cpu import scan
from distilrec.networks.sequence import FeatureProjection, ItemTower
from distilrec.networks.student import Range, Size, Student, StudentSettings, TreeNode
from distilrec.settings import Count, Share

DECAYS = (0.7, 0.98)
DECAY_NAMES = ("lately", "in general")
_SMALLEST = 1e-30


class SoftTreeConfig(StudentSettings, frozen=True, tag="soft_tree"):
    """A soft decision tree over readable inputs."""

    depth: Annotated[int, Meta(ge=1, le=10)] = 5
    """Levels of the tree; it has 2^depth leaves."""
    inputs: Count = 200
    """Number of popular items that are inputs themselves."""
    balance: Share = 0.1
    """Weight of the penalty on gates that send all users one way."""
    max_history: Count = 200
    """Latest events of a user that the model looks at."""


class SoftTree(Student):
    """gates: (nodes, 2 C), breadth first: the children of gate n are 2n + 1 (left) and 2n + 2."""

    settings = SoftTreeConfig
    space: ClassVar = {"depth": Range(2, 8), "balance": Range(1e-3, 1.0, log=True)}
    size = Size("depth", "levels", (2, 3, 4, 5, 6, 7))
    grows: ClassVar = False  # its gates are over the most popular items of its data
    item_inputs: torch.Tensor
    decays: torch.Tensor

    def __init__(self, dataset: Dataset, config: SoftTreeConfig) -> None:
        super().__init__(dataset, config)
        self.max_history = config.max_history
        self.depth, self.balance = config.depth, config.balance
        self.leaves = self.state_dim = 2**config.depth
        self._set_signs(dataset)
        self.items = ItemTower(dataset, self.leaves)
        nn.init.normal_(self.items.embedding, std=0.5)
        self.user_features = FeatureProjection(dataset.user_features, self.leaves - 1)
        self.register_buffer(
            "item_inputs", torch.from_numpy(item_inputs(dataset, config.inputs)), persistent=False
        )
        self.register_buffer("decays", torch.tensor(DECAYS).unsqueeze(1), persistent=False)
        width = 2 * self.item_inputs.shape[1]
        self.gates = nn.Parameter(torch.randn(self.leaves - 1, width))
        self.gate_bias = nn.Parameter(torch.zeros(self.leaves - 1))
        self._penalty = torch.zeros(())

    def state(self, batch: Batch) -> torch.Tensor:
        """Return what was had lately and in general, at every position, (batch, length, 2 C)."""
        inputs = self.look_up(batch, self.item_inputs).unsqueeze(2)  # (batch, length, 1, C)
        decays = self.decays.expand(-1, inputs.shape[-1])  # (2, C)
        return scan((1 - decays) * inputs, decays).flatten(2)

    def encode(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        state = self.state(batch)
        # (batch, length, nodes)
        right = torch.sigmoid(
            state @ self.gates.T + self.user_features(batch.users).unsqueeze(1) + self.gate_bias
        )
        paths = torch.ones_like(right[..., :1])
        penalty = paths.new_zeros(())
        counted = (batch.targets >= 0).unsqueeze(-1)
        for level in range(self.depth):
            gate = right[..., 2**level - 1 : 2 ** (level + 1) - 1]  # (batch, length, 2^level)
            if self.training and self.balance:
                reached = paths * counted
                share = ((reached * gate).sum((0, 1)) / reached.sum((0, 1)).clamp(min=1e-6)).clamp(
                    1e-4, 1 - 1e-4
                )
                penalty = (
                    penalty - 0.5**level * 0.5 * (torch.log(share) + torch.log(1 - share)).mean()
                )
            paths = torch.stack([paths * (1 - gate), paths * gate], dim=-1).flatten(-2)
        self._penalty = self.balance * penalty
        return paths  # (batch, length, leaves)

    def penalty(self) -> torch.Tensor:
        """-balance sum over levels d of 2^-d mean over gates of 0.5 log alpha + 0.5 log(1 - alpha)
        (eq. 8).

        alpha: the share of the requests that reach a gate and go right. Each batch counts once.
        """
        value, self._penalty = self._penalty.to(self.device), torch.zeros(())
        return value

    def log_totals(self) -> torch.Tensor:
        """Return the log of the sum over items with training rows of exp(phi_l + b), (leaves,)."""
        warm = self.items.warm_items
        return torch.logsumexp(self.items.vectors()[:warm] + self.items.bias.unsqueeze(1), dim=0)

    def likely(self, vectors: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
        """Return the probability of these items in every leaf, (…, leaves), of vectors (…, leaves)
        and biases (…).
        """
        return torch.exp(vectors + biases.unsqueeze(-1) - self.log_totals())

    def score(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return torch.log(hidden @ self.likely(vectors, biases).T + _SMALLEST)

    def score_own(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor,
    ) -> torch.Tensor:
        return torch.log((hidden * self.likely(vectors, biases)).sum(-1) + _SMALLEST)

    def arrays(self) -> dict[str, torch.Tensor]:
        return {
            "gates": self.gates,
            "gate_bias": self.gate_bias,
            "log_totals": self.log_totals(),
            "decays": self.decays[:, 0],
        }

    def item_vectors(self) -> torch.Tensor:
        """Return the channel of every leaf, then the inputs X_i, (items, leaves + C)."""
        return torch.cat([self.items.vectors(), self.item_inputs], dim=1)

    def item_table(self) -> torch.Tensor:
        """Return a table by which features give a new item its channels in the leaves and its
        inputs.
        """
        table, inputs = self.items.features.table, self.item_inputs.shape[1]
        return torch.cat([table, torch.eye(len(table), inputs)], dim=1)

    def user_table(self) -> torch.Tensor:
        """Return a table in which U f_u takes the first channels of a user vector, one for each
        gate.
        """
        return functional.pad(self.user_features.table, (0, 1 + self.item_inputs.shape[1]))

    def in_words(self, dataset: Dataset) -> TreeNode:
        everyone = np.arange(dataset.info.warm_users)
        histories = dataset.histories(everyone, dataset.train_end[everyone])
        batch = prediction_batch(histories, dataset.catalogue_size, self.max_history)
        return describe_tree(self, dataset, batch)


def item_inputs(dataset: Dataset, most_popular: int) -> NDArray[np.float32]:
    """Return X, (items, C) float32: the encoded features of every item, then one column for each of
    the most popular items.
    """
    features = dataset.item_features.dense()
    one_hot = np.zeros(
        (dataset.catalogue_size, min(most_popular, dataset.info.warm_items)), np.float32
    )
    np.fill_diagonal(one_hot, 1.0)  # items are ordered by popularity
    return np.hstack([features, one_hot])


def input_names(dataset: Dataset, inputs: int) -> list[str]:
    """Return a name people can read for each column of X: "genres=Drama", or the title of an item
    in quotes.
    """
    titles = dataset.info.titles[: inputs - dataset.item_features.width]
    return [*dataset.info.item_encoder.column_names(), *(f"“{title}”" for title in titles)]


def describe_tree(
    model: SoftTree, dataset: Dataset, batch: Batch, questions: int = 4, items: int = 4
) -> TreeNode:
    """Return the tree in words. batch: for whom the shares are counted, such as all users at the
    end of their history.

    An input's pull is its weight times its standard deviation over these users: what makes a
    difference in practice.
    """
    warm = model.items.warm_items
    with torch.inference_mode():
        paths = model.encode(batch, model.items.vectors())[batch.targets == 0]  # (users, leaves)
        spread = model.state(batch)[batch.targets == 0].std(0, unbiased=False)
        leaves = model.likely(model.items.vectors()[:warm], model.items.bias).T
        users = dataset.user_features.dense()
        user_pull = model.user_features.table.numpy() * users.std(0)[:, None]  # (columns, nodes)
    named = input_names(dataset, model.item_inputs.shape[1])
    names = [f"{name} {when}" for when in DECAY_NAMES for name in named]
    names += [f"user {name}" for name in dataset.info.user_encoder.column_names()]
    pulls = np.hstack([(model.gates.detach() * spread).numpy(), user_pull.T])  # (nodes, inputs)
    shares, likely = paths.mean(0).numpy(), leaves.numpy()
    popular = likely.mean(0)

    def node(number: int, first: int, count: int) -> TreeNode:
        share = shares[first : first + count]
        mixed = (share[:, None] * likely[first : first + count]).sum(0) / max(
            float(share.sum()), 1e-12
        )
        # Typical of this place: likely here, and more so than elsewhere.
        typical = np.argsort(
            -(mixed * np.log(np.maximum(mixed, 1e-12) / np.maximum(popular, 1e-12)))
        )[:items]
        titles = tuple(dataset.info.titles[item] for item in typical)
        if count == 1:
            return TreeNode(float(share.sum()), (), titles)
        strongest = np.argsort(-np.abs(pulls[number]))[:questions]
        words = tuple(f"{'+' if pulls[number][n] > 0 else '-'} {names[n]}" for n in strongest)
        half = count // 2
        children = (node(2 * number + 1, first, half), node(2 * number + 2, first + half, half))
        return TreeNode(float(share.sum()), words, titles, children)

    return node(0, 0, model.leaves)
