"""What the latest events of a user add to the scores of their neighbours: a sparse items x items
term beside a student's query.

    s_i += sum over the latest n events of w[e, age] S[j, i],   j the item, e the type of the event

S has a fixed pattern: `number` neighbours i of each item j. Pattern and first values are the
largest weights of a transition model of the training rows (`distilrec.networks.transitions`); w and
the values of S are learned. A bundle holds S in 8 bits, so that it is rounded where it is not
trained.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.networks.batches import Batch
from distilrec.networks.on_cpu import dropout
from distilrec.networks.transitions import largest_transitions

LARGEST_CATALOGUE = 2**24  # whole numbers up to here are float32
_LEVELS = 127.0  # of the values of an item's row, up to the largest, on either side of 0
_DECAY = 0.9  # of w by age, before training
_LARGEST = 3.0  # the largest value of S before training


class Neighbours(nn.Module):
    """The term for one student. An item without training rows neither has neighbours nor is one.

    What an answer has to know of a user travels behind the query, as float32: the latest items plus
    1, the latest first, 0 where there was none, and the types of their events; (…, 2 n).
    """

    items: torch.Tensor  # (warm items, number) int64, rising in each row

    def __init__(self, dataset: Dataset, number: int, events: int, share: float) -> None:
        super().__init__()
        self.events, self.dropout = events, share
        self.catalogue, self.warm = dataset.catalogue_size, dataset.info.warm_items
        number = min(number, self.warm)
        pattern = torch.arange(number).expand(self.warm, number)
        self.register_buffer("items", pattern.contiguous())
        self.strengths = nn.Parameter(torch.zeros(self.warm, number))  # S
        fading = _DECAY ** torch.arange(events, dtype=torch.float32)
        self.ages = nn.Parameter(fading.expand(len(dataset.info.event_types), events).clone())  # w

    @torch.no_grad()
    def begin(self, dataset: Dataset) -> None:
        """Set pattern and values of S to what the training rows say."""
        items, weights = largest_transitions(dataset, self.items.shape[1])
        self.items.copy_(torch.from_numpy(items))
        values = torch.from_numpy(weights).clamp(min=0)
        self.strengths.copy_(_LARGEST * values / values.max().clamp(min=1e-6))

    def latest(self, batch: Batch, window: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Return the latest events at some positions, (…, 2 n); see the class.

        window, place: (…), int64, where each stands in the batch.
        """
        before = place.unsqueeze(-1) - torch.arange(self.events, device=place.device)
        there, before = before >= 0, before.clamp(min=0)
        window = window.unsqueeze(-1)
        items, events = batch.items[window, before], batch.events[window, before]
        # The start token and padding stand behind the catalogue
        there &= items < self.catalogue
        return torch.cat([torch.where(there, items + 1, 0), events], dim=-1).float()

    def add(
        self, logits: torch.Tensor, latest: torch.Tensor, items: torch.Tensor | None
    ) -> torch.Tensor:
        """Add the term to logits, (positions, columns), in place, and return them: a second tensor
        of their size would cost more than the term.

        items: of the columns, (columns,), in the warm items; None for the first of the catalogue.
        """
        rows, weights = self._rows(latest)  # (positions, n)
        values = functional.embedding(rows, self.values()) * weights.unsqueeze(-1)
        values = dropout(values, self.dropout, self.training)
        columns = self.items[rows]  # (positions, n, number)
        if items is not None:
            places = items.new_full((self.warm,), -1)
            places[items] = torch.arange(len(items), device=items.device)
            columns = places[columns]
            values = torch.where(columns < 0, 0.0, values)
            columns = columns.clamp(min=0)
        return logits.scatter_add_(1, columns.flatten(1), values.flatten(1).to(logits.dtype))

    def of(self, latest: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return the term for items that differ by position, (…), which broadcast against `latest`
        without its last axis.
        """
        rows, weights = self._rows(latest)  # (…, n)
        pattern = self.items + self.warm * torch.arange(self.warm, device=items.device)[:, None]
        pattern = pattern.flatten()  # rising
        wanted = items.unsqueeze(-1) + self.warm * rows
        found = torch.searchsorted(pattern, wanted).clamp(max=len(pattern) - 1)
        there = pattern[found] == wanted
        values = torch.where(there, self.values().flatten()[found], 0.0)
        return (values * weights).sum(-1)

    def _rows(self, latest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of S that count and the weight of each, (…, n); 0 where there is none."""
        whole = latest.long()
        items, events = whole[..., : self.events], whole[..., self.events :]
        ages = torch.arange(self.events, device=latest.device)
        there = (items > 0) & (items <= self.warm)
        weights = torch.where(there, self.ages[events, ages], 0.0)
        return torch.where(there, items - 1, 0), weights

    def values(self) -> torch.Tensor:
        """Return S, (warm items, number), as it is served where it is not in training."""
        if self.training:
            return self.strengths
        integers, units = self.integers()
        return integers * units.unsqueeze(-1)

    def integers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return S in 8 bits: integers from -127 to 127, float32, and the unit of each row."""
        units = self.strengths.abs().amax(1).clamp(min=1e-30) / _LEVELS
        return torch.round(self.strengths / units.unsqueeze(-1)), units

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the arrays of a bundle."""
        integers, units = self.integers()
        return {
            "neighbours": self.items.int(),
            "neighbour_values": integers.to(torch.int8),
            "neighbour_units": units,
            "neighbour_ages": self.ages,
        }
