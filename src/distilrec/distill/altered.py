"""Altered histories, about which a teacher is asked: data augmentation for distillation.

Windows of the log get the beginning of another window, swapped events and replaced items, as images
get crops and mixtures (Beyer et al. 2022, sec. 3.1). An altered history has no true next item, so
only the soft loss uses it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset
from distilrec.networks.batches import Batch
from distilrec.settings import Settings, Share

_SHORT = 3  # maximum number of events of a short history


class AlteredConfig(Settings, frozen=True):
    """Altered histories, one for each training window, for a teacher that is asked."""

    share: Share = 0.0
    """Share of the soft loss that is on altered histories; 0 makes none."""
    spliced: Share = 0.5
    """Share of the altered histories that begin like the history of another user."""
    swapped: Share = 0.15
    """Share of the events that change places with the next one."""
    replaced: Share = 0.1
    """Share of the items that are replaced by others, drawn by popularity."""
    short: Share = 0.1
    """Share of the altered histories that are cut to at most three consecutive events."""


class Alteration:
    """Makes altered histories of a batch."""

    def __init__(self, config: AlteredConfig, dataset: Dataset) -> None:
        self._config, self._start_token = config, dataset.catalogue_size
        popularity = dataset.popularity()[: dataset.info.warm_items].astype(np.float64)
        self._up_to = popularity.cumsum() / popularity.sum()

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Return one altered window for each window of the batch, of the same users. The same
        positions are scored, except in short histories, and no target has a meaning.
        """
        items, events = batch.items.numpy().copy(), batch.events.numpy().copy()
        scored = batch.rows.numpy() >= 0
        windows = self._windows(items, events, scored)
        for row, window in enumerate(windows):
            changed = self._altered(window, windows, rng)
            if len(changed) and rng.random() < self._config.short:
                changed = _cut_down(changed, rng)
                items[row], events[row], scored[row] = self._start_token, 0, False
                scored[row, : len(changed) + 1] = True
                items[row, 0] = self._start_token
                first = 1
            else:
                first = int(items[row, 0] == self._start_token)
            positions = slice(first, min(first + len(changed), items.shape[1]))
            changed = changed[: positions.stop - first]
            items[row, positions], events[row, positions] = changed[:, 0], changed[:, 1]
        empty = torch.zeros((len(items), 0), dtype=torch.int64)
        return Batch(
            batch.users,
            torch.from_numpy(items),
            torch.from_numpy(events),
            torch.from_numpy(np.where(scored, 0, -1)),
            torch.full_like(batch.rows, -1),
            empty,
            # Altered events keep the times and the context of the window
            batch.times,
            batch.asked,
            None if batch.earlier_times is None else empty,
            earlier_events=None if batch.earlier_events is None else empty,
            context=batch.context,
            context_weights=batch.context_weights,
        )

    def _windows(
        self, items: NDArray[np.int64], events: NDArray[np.int64], scored: NDArray[np.bool_]
    ) -> list[NDArray[np.int64]]:
        """Return the events of each window, (events, 2): item and type."""
        windows = []
        for row in range(len(items)):
            first = int(items[row, 0] == self._start_token)
            stop = int(np.flatnonzero(scored[row]).max(initial=-1)) + 1
            windows.append(np.stack([items[row, first:stop], events[row, first:stop]], axis=1))
        return windows

    def _altered(
        self,
        window: NDArray[np.int64],
        windows: list[NDArray[np.int64]],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Return a window with another beginning, events in another order, and other items."""
        config, changed = self._config, window.copy()
        donor = windows[int(rng.integers(len(windows)))]
        longest = min(len(window), len(donor))
        if longest > 1 and rng.random() < config.spliced:
            beginning = int(rng.integers(1, longest))
            changed[:beginning] = donor[:beginning]
        swaps = rng.random(max(len(changed) - 1, 0)) < config.swapped
        swaps[1:] &= ~swaps[:-1]
        first = np.flatnonzero(swaps)
        changed[first], changed[first + 1] = changed[first + 1], changed[first].copy()
        replaced = rng.random(len(changed)) < config.replaced
        drawn = np.searchsorted(self._up_to, rng.random(int(replaced.sum())), side="right")
        changed[replaced, 0] = np.minimum(drawn, len(self._up_to) - 1)
        return changed


def _cut_down(window: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return at most three consecutive events of a window."""
    first = int(rng.integers(max(len(window) - _SHORT, 0) + 1))
    return window[first : first + _SHORT]
