"""Weights between items for two histories: what was had in this visit, and in earlier ones.

    s = sum over this visit of decay^age B[item, :]
        + sum over earlier visits of earlier^age C[item, :]

An age counts the later events of the same of the two histories. B and C are one matrix, C below B.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distilrec.data.dataset import Histories
from distilrec.networks.batches import Batch, times_of
from distilrec.teachers.item_weights import DenseWeights, decayed, padded


@dataclass(frozen=True)
class VisitWeights:
    """weights: (2 items, items); catalogue: how many items there are with those without training
    rows; gap: seconds without an event that end a visit; decay, earlier: what an event keeps of its
    weight with each later one, in this visit and in earlier ones.
    """

    weights: DenseWeights
    catalogue: int
    gap: float
    decay: float
    earlier: float

    def answer(self, batch: Batch, window: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Return the logits of the items with training rows, (positions, items). window, position:
        (positions,) int64, where each stands in the batch, which has padding for what does not
        count.
        """
        times, asked = times_of(batch)
        before = batch.earlier_times
        assert before is not None  # where there are times
        latest = before.amax(1, keepdim=True) if before.shape[1] else times[:, :1]
        latest = torch.where(latest < 0, times[:, :1], latest)
        begins = torch.cat([latest, times], dim=1).diff(dim=1) >= self.gap
        out = torch.empty(len(window), self.weights.items)
        this, others, every = self._sums(batch.earlier, before)
        for step in range(batch.items.shape[1]):
            new = begins[:, step]
            others[new] = every[new]
            this[new] = 0.0
            self._fold(this, every, batch.items[:, step])
            here = (position == step).nonzero().squeeze(1)
            asking = window[here]
            goes_on = (asked[asking, step] - times[asking, step] < self.gap).unsqueeze(1)
            out[here] = torch.where(goes_on, this[asking] + others[asking], every[asking])
        return out

    def scores(self, histories: Histories) -> torch.Tensor:
        """Return the logits of the items with training rows, (batch, items). The histories have
        times; what does not count in them is an item outside the catalogue.
        """
        assert histories.times is not None and histories.now is not None
        times = padded(histories, np.floor(histories.times).astype(np.int64), -1)
        items = padded(histories, histories.items, self.catalogue)
        this, others, every = self._sums(items, times)
        last = times.amax(1) if times.shape[1] else torch.zeros(len(histories), dtype=torch.int64)
        now = torch.from_numpy(np.floor(histories.now).astype(np.int64))
        return torch.where((now - last < self.gap).unsqueeze(1), this + others, every)

    def _sums(
        self, items: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the last visit and what earlier ones say of the next item, and what all
        events say as earlier ones, (windows, items) each.

        items, times: (windows, n), padded behind the events.
        """
        there = items < self.catalogue
        padding = times < 0
        ends = times.diff(dim=1, prepend=times[:, :1]) >= self.gap
        visits = (ends & ~padding).cumsum(1)
        last = visits == visits[:, -1:] if items.shape[1] else there
        return (
            self._weighted(items, there & last, self.decay, 0),
            self._weighted(items, there & ~last, self.earlier, 1),
            self._weighted(items, there, self.earlier, 1),
        )

    def _weighted(
        self, items: torch.Tensor, there: torch.Tensor, decay: float, block: int
    ) -> torch.Tensor:
        """Return the sums of the rows of some events of each window in B (block 0) or C (1)."""
        places, rows, factors = decayed(items, there, decay, self.weights.items)
        rows = rows + block * self.weights.items
        return self.weights.weighted_sums(len(items), places, rows, factors)

    def _fold(self, this: torch.Tensor, every: torch.Tensor, items: torch.Tensor) -> None:
        """Add one event of each window to both sums. Padding adds nothing."""
        counts = (items < self.catalogue).unsqueeze(1)
        places = (items < self.weights.items).nonzero().squeeze(1)
        for state, decay, block in ((this, self.decay, 0), (every, self.earlier, 1)):
            if decay < 1:
                state.mul_(torch.where(counts, decay, 1.0))
            self.weights.add_rows(state, places, items[places] + block * self.weights.items)
