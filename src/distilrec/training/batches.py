"""Histories as padded tensors: what every sequence model trains and predicts on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories


@dataclass(frozen=True)
class Batch:
    """A right-padded batch of windows over histories.

    Position t has seen the inputs 0..t; input 0 of a whole history is the start token, so that position t predicts
    the t-th event. `catalogue_size` is the index of both the start token and the padding.

    users: (batch,); items, events: (batch, length), the inputs; targets: (batch, length), the next item, -1 where
    there is none or where it is padding; rows: (batch, length), the row of the target in the dataset. All int64.
    """

    users: torch.Tensor
    items: torch.Tensor
    events: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class Windows:
    """Training rows cut into windows of at most `length` rows; window w covers rows starts[w]:stops[w] of a user."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    users: NDArray[np.int64]
    opening: NDArray[np.bool_]  # the window begins where the history begins


def training_windows(dataset: Dataset, length: int) -> Windows:
    """Windows that cover every training row once; long histories are cut from their end, so the newest one is full."""
    starts, stops, users = [], [], []
    for user in range(dataset.info.warm_users):
        first, stop = int(dataset.offsets[user]), int(dataset.train_end[user])
        while stop > first:
            start = max(first, stop - length)
            starts.append(start)
            stops.append(stop)
            users.append(user)
            stop = start
    begin = np.array(starts, np.int64)
    owner = np.array(users, np.int64)
    return Windows(begin, np.array(stops, np.int64), owner, begin == dataset.offsets[owner])


def training_batches(
    dataset: Dataset, windows: Windows, batch_size: int, rng: np.random.Generator | None
) -> Iterator[Batch]:
    """The windows in batches of similar length; `rng` shuffles both the windows and the batches, None keeps order."""
    lengths = windows.stops - windows.starts
    order = np.arange(len(lengths))
    if rng is not None:
        order = np.argsort(lengths + rng.uniform(0, 20, len(lengths)), kind="stable")
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if rng is not None:
        rng.shuffle(chunks)
    for chunk in chunks:
        yield _window_batch(dataset, windows, chunk)


def _window_batch(dataset: Dataset, windows: Windows, chunk: NDArray[np.int64]) -> Batch:
    start_token = dataset.catalogue_size
    longest = int((windows.stops - windows.starts)[chunk].max())
    items = np.full((len(chunk), longest), start_token, np.int64)
    events = np.zeros((len(chunk), longest), np.int64)
    targets = np.full((len(chunk), longest), -1, np.int64)
    rows = np.full((len(chunk), longest), -1, np.int64)
    for place, window in enumerate(chunk):
        start, stop = int(windows.starts[window]), int(windows.stops[window])
        size = stop - start
        targets[place, :size] = dataset.items[start:stop]
        rows[place, :size] = np.arange(start, stop)
        if windows.opening[window]:
            items[place, 1:size] = dataset.items[start : stop - 1]
            events[place, 1:size] = dataset.events[start : stop - 1]
        else:
            items[place, :size] = dataset.items[start - 1 : stop - 1]
            events[place, :size] = dataset.events[start - 1 : stop - 1]
    items[items == UNKNOWN_ITEM] = start_token
    return Batch(*(torch.from_numpy(each) for each in (windows.users[chunk], items, events, targets, rows)))


def prediction_batch(histories: Histories, catalogue_size: int, length: int) -> Batch:
    """The newest events of each history behind a start token; predictions stand at `last_positions`.

    A history that is longer than `length` loses its oldest events and, with them, the start token.
    """
    sizes = np.diff(histories.offsets)
    longest = int(min(sizes.max(initial=0) + 1, length))
    items = np.full((len(histories), longest), catalogue_size, np.int64)
    events = np.zeros((len(histories), longest), np.int64)
    targets = np.full((len(histories), longest), -1, np.int64)
    for place in range(len(histories)):
        stop, size = int(histories.offsets[place + 1]), int(sizes[place])
        first = 1 if size < longest else 0
        kept = min(size, longest - first)
        items[place, first : first + kept] = histories.items[stop - kept : stop]
        events[place, first : first + kept] = histories.events[stop - kept : stop]
        targets[place, first + kept - 1] = 0  # marks the last position
    return Batch(*(torch.from_numpy(each) for each in (histories.users, items, events, targets, targets)))
