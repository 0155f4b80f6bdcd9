"""What the context of a question adds to what a network knows of a user: the device, the page.

    C(c) = sum over features j of w_j(c) K[column_j(c)]

Each feature has one column, its value or "unknown", or for a number its quantile times one vector.
In an answer C is added to U f_u, or to the last layer of a transformer. In training the context of
some positions is unknown at random, so that a question without one is answered as well.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.errors import InvalidValueError
from distilrec.networks.batches import Batch

UNTOLD = 0.1
"""Share of the positions of a training whose context is unknown."""


class ContextInputs(nn.Module):
    """C for one network, of dimension `dim`."""

    unknown: torch.Tensor
    unknown_weights: torch.Tensor

    def __init__(self, dataset: Dataset, dim: int) -> None:
        super().__init__()
        encoder = dataset.info.context_encoder
        columns, weights = zip(*encoder.encode({}), strict=True)
        self.register_buffer("unknown", torch.tensor(columns), persistent=False)
        self.register_buffer("unknown_weights", torch.tensor(weights), persistent=False)
        self.table = nn.Parameter(torch.zeros(encoder.width, dim))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return C at every position, (batch, length, dim); in the unknown context where the batch
        has none. Raises InvalidValueError for other features than those of the data set.
        """
        columns, weights = batch.context, batch.context_weights
        if columns is None or weights is None:
            size = (*batch.items.shape, len(self.unknown))
            columns, weights = self.unknown.expand(size), self.unknown_weights.expand(size)
        elif columns.shape[-1] != len(self.unknown):
            raise InvalidValueError(
                f"the histories have {columns.shape[-1]} context features, and this network "
                f"learned with {len(self.unknown)}",
                fix="give Histories such as those of Dataset.histories",
            )
        if self.training:
            untold = torch.rand(columns.shape[:-1], device=columns.device) < UNTOLD
            columns = torch.where(untold.unsqueeze(-1), self.unknown, columns)
            weights = torch.where(untold.unsqueeze(-1), self.unknown_weights, weights)
        added: torch.Tensor = (
            functional.embedding(columns, self.table) * weights.unsqueeze(-1)
        ).sum(-2)
        return added


def context_inputs_of(dataset: Dataset, dim: int) -> ContextInputs | None:
    """Return the context inputs of a network, None where the log has no context features."""
    return ContextInputs(dataset, dim) if dataset.info.schema.context else None
