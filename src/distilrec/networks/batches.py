"""Histories as padded tensors: what every sequence model trains and predicts on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset, Histories
from distilrec.errors import InvalidValueError
from distilrec.features.encoding import FeatureMatrix
from distilrec.offsets import offsets_of
from distilrec.targets import Roles


@dataclass(frozen=True)
class Batch:
    """A right-padded batch of windows over histories.

    Position t has seen the inputs 0..t; input 0 of a whole history is the start token, so that
    position t predicts the t-th event. The size of the catalogue is the index of both the start
    token and the padding.

    users: (batch,); items, events: (batch, length), the inputs; targets: (batch, length), the next
    item, -1 where there is none to score or it only informs; rows: (batch, length), the row of the
    target in the dataset, or its key in `distilrec.networks.orders`; earlier: (batch, n), the items
    from before the window, padded. All int64.
    unwanted: (batch, length), the next item where the next event is negative, -1 elsewhere;
    weights: (batch, length) float32, of the targets in the loss. None where no event is negative,
    and where all targets weigh the same. earlier_events: (batch, n), the types of the events of
    `earlier`, where types have a meaning (`[targets]`).
    times: (batch, length), when each input happened, in seconds since 1970, the start token with
    the first event; asked: (batch, length), when each position is asked for the next event, which
    is when it happened; earlier_times: (batch, n), when the events of `earlier` happened, -1 for
    padding. All are int64, and None where the log has no times.
    context, context_weights: (batch, length, features), the columns, int64, and weights of the
    context in which each position is asked, which is that of the next event; None where the log has
    no context features.
    """

    users: torch.Tensor
    items: torch.Tensor
    events: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor
    earlier: torch.Tensor
    times: torch.Tensor | None = None
    asked: torch.Tensor | None = None
    earlier_times: torch.Tensor | None = None
    unwanted: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    earlier_events: torch.Tensor | None = None
    context: torch.Tensor | None = None
    context_weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def select(self, windows: torch.Tensor) -> Batch:
        """Return some of the windows, (n,) int64."""
        return self._each(lambda tensor: tensor[windows])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(
            **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None}
        )


@dataclass(frozen=True)
class Windows:
    """Training rows cut into windows; window w covers rows starts[w]:stops[w] of one user and
    scores those from scored[w].

    All (windows,) int64. The rows before scored[w] are context: another window scores them.
    """

    starts: NDArray[np.int64]
    scored: NDArray[np.int64]
    stops: NDArray[np.int64]
    users: NDArray[np.int64]


def times_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the times of the inputs and those of the questions, (batch, length) each.

    Raises InvalidValueError for a batch that does not know when its events happened.
    """
    if batch.times is None or batch.asked is None:
        raise InvalidValueError(
            "this network is told when events happened, and these histories do not say it",
            fix="give Histories with times and now, such as those of Dataset.histories",
        )
    return batch.times, batch.asked


def training_windows(
    dataset: Dataset,
    length: int,
    context: int = 0,
    trained_from: NDArray[np.int64] | None = None,
) -> Windows:
    """Return windows of at most `length` rows that score every training row once.

    context: every scored row has at least this many rows before it in its window, or all there are.
    trained_from: (users,), the row of each user before which none is scored; all are by default.
    Long histories are cut from their end, so the newest window is full.
    """
    starts, scored, stops, users = [], [], [], []
    for user in range(dataset.info.warm_users):
        first, stop = int(dataset.offsets[user]), int(dataset.train_end[user])
        oldest = first if trained_from is None else max(first, int(trained_from[user]))
        while stop > oldest:
            start = max(first, stop - length)
            scored_from = max(oldest, first if start == first else start + context)
            starts.append(start)
            scored.append(scored_from)
            stops.append(stop)
            users.append(user)
            stop = scored_from
    return Windows(*(np.array(column, np.int64) for column in (starts, scored, stops, users)))


def training_batches(
    dataset: Dataset,
    windows: Windows,
    batch_size: int,
    rng: np.random.Generator | None,
    place: tuple[int, int] = (0, 1),
    keys: NDArray[np.int64] | None = None,
) -> Iterator[Batch]:
    """Yield the windows in batches of similar length; `rng` shuffles both the windows and the
    batches, None keeps order.

    place: of this process among all (`parallel.rank_and_size`), each of which gets its share of
    every batch; that may be empty. keys: (rows,), what the targets of a batch have as their rows,
    the row numbers by default.
    """
    lengths = windows.stops - windows.starts
    order = np.arange(len(lengths))
    if rng is not None:
        order = np.argsort(lengths + rng.uniform(0, 20, len(lengths)), kind="stable")
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if rng is not None:
        rng.shuffle(chunks)
    number, of = place
    for chunk in chunks:
        yield batch_of(dataset, windows, chunk[number::of], keys)


def batch_of(
    dataset: Dataset,
    windows: Windows,
    chunk: NDArray[np.int64],
    keys: NDArray[np.int64] | None = None,
) -> Batch:
    """Return these windows, given by number, (batch,). keys: as in `training_batches`."""
    start_token = dataset.catalogue_size
    longest = int((windows.stops - windows.starts)[chunk].max(initial=0))
    # Rows before the first input, -1 at the beginning
    before = windows.starts - 1 - dataset.offsets[windows.users]
    items = np.full((len(chunk), longest), start_token, np.int64)
    events = np.zeros((len(chunk), longest), np.int64)
    targets = np.full((len(chunk), longest), -1, np.int64)
    rows = np.full((len(chunk), longest), -1, np.int64)
    earlier = np.full(
        (len(chunk), max(0, int(before[chunk].max(initial=0)))), start_token, np.int64
    )
    for row, window in enumerate(chunk):
        start, scored, stop = (
            int(windows.starts[window]),
            int(windows.scored[window]),
            int(windows.stops[window]),
        )
        first_target = scored - start
        targets[row, first_target : stop - start] = dataset.items[scored:stop]
        rows[row, first_target : stop - start] = (
            np.arange(scored, stop) if keys is None else keys[scored:stop]
        )
        shift = 1 if before[window] < 0 else 0  # the start token stands before the first event
        items[row, shift : stop - start] = dataset.items[start - 1 + shift : stop - 1]
        events[row, shift : stop - start] = dataset.events[start - 1 + shift : stop - 1]
        if before[window] > 0:
            earlier[row, : before[window]] = dataset.items[start - 1 - before[window] : start - 1]
    for sequences in (items, earlier):
        sequences[sequences == UNKNOWN_ITEM] = start_token
    batch = Batch(
        *map(torch.from_numpy, (windows.users[chunk], items, events, targets, rows, earlier))
    )
    if dataset.roles is not None:
        batch = _with_roles(batch, dataset, dataset.roles, windows, chunk)
    if dataset.context is not None:
        asked = _rows_asked(windows, chunk)
        batch = _in_context(batch, dataset.context.take(asked))
    if not dataset.timed:
        return batch
    return replace(batch, **_times(dataset, windows, chunk, batch.earlier.shape[1]))


def _with_roles(
    batch: Batch, dataset: Dataset, roles: Roles, windows: Windows, chunk: NDArray[np.int64]
) -> Batch:
    """Return a batch of these windows whose targets are those of target events alone."""
    length = batch.targets.shape[1]
    rows = np.minimum(windows.starts[chunk][:, None] + np.arange(length), len(dataset.events) - 1)
    kinds = torch.from_numpy(dataset.events[rows].astype(np.int64))  # of the next event
    nothing, scored = torch.tensor(-1), batch.targets
    changed = replace(
        batch,
        targets=torch.where(torch.from_numpy(roles.target)[kinds], scored, nothing),
        earlier_events=torch.from_numpy(_earlier_events(dataset, windows, chunk, batch)),
    )
    if roles.negative.any():
        negative = torch.from_numpy(roles.negative)[kinds]
        changed = replace(changed, unwanted=torch.where(negative, scored, nothing))
    if roles.weighted:
        changed = replace(changed, weights=torch.from_numpy(roles.loss_weight)[kinds])
    return changed


def _earlier_events(
    dataset: Dataset, windows: Windows, chunk: NDArray[np.int64], batch: Batch
) -> NDArray[np.int64]:
    """Return the types of the events before these windows, (batch, n), 0 for padding."""
    there, rows = _earlier_rows(dataset, windows, chunk, batch.earlier.shape[1])
    return np.where(there, dataset.events[rows], 0).astype(np.int64)


def _earlier_rows(
    dataset: Dataset, windows: Windows, chunk: NDArray[np.int64], number: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return the rows before these windows, (batch, number), and where there are some."""
    places = np.arange(number)
    first = dataset.offsets[windows.users[chunk]]
    there = places < (windows.starts[chunk] - 1 - first)[:, None]
    return there, np.where(there, first[:, None] + places, 0)


def _in_context(batch: Batch, context: FeatureMatrix) -> Batch:
    """Return the same batch in a context. columns, weights: (batch, length, features)."""
    return replace(
        batch,
        context=torch.from_numpy(context.columns.astype(np.int64)),
        context_weights=torch.from_numpy(context.weights),
    )


def _rows_asked(windows: Windows, chunk: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row that each position of these windows asks for, (batch, length); padding repeats
    the last one.
    """
    starts, stops = windows.starts[chunk], windows.stops[chunk]
    places = np.arange(int((stops - starts).max(initial=0)))
    rows: NDArray[np.int64] = np.minimum(starts[:, None] + places, stops[:, None] - 1)
    return rows


def _times(
    dataset: Dataset, windows: Windows, chunk: NDArray[np.int64], earlier: int
) -> dict[str, torch.Tensor]:
    """Return when the inputs of these windows happened, when their positions are asked, and when
    what was before them happened, of which there is room for `earlier` events.
    """
    there, before = _earlier_rows(dataset, windows, chunk, earlier)
    rows = _rows_asked(windows, chunk)
    first = dataset.offsets[windows.users[chunk]][:, None]
    return {
        "times": torch.from_numpy(_seconds(dataset.times[np.maximum(rows - 1, first)])),
        "asked": torch.from_numpy(_seconds(dataset.times[rows])),
        "earlier_times": torch.from_numpy(np.where(there, _seconds(dataset.times[before]), -1)),
    }


def _seconds(times: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(times).astype(np.int64)


def prediction_batch(histories: Histories, catalogue_size: int, length: int) -> Batch:
    """Return the newest events of each history behind a start token; the target is 0 at the last
    one, where predictions stand, and -1 elsewhere.

    A history that is longer than `length` loses its oldest events and, with them, the start token.
    """
    sizes = np.diff(histories.offsets)
    longest = int(min(sizes.max(initial=0) + 1, length))
    first = (sizes < longest).astype(np.int64)  # behind the start token
    kept = np.minimum(sizes, longest - first)
    places = np.arange(longest)
    there = (places >= first[:, None]) & (places < (first + kept)[:, None])
    newest = np.arange(len(histories.items)) >= np.repeat(histories.offsets[1:] - kept, sizes)
    items = np.full((len(histories), longest), catalogue_size, np.int64)
    events = np.zeros((len(histories), longest), np.int64)
    targets = np.full((len(histories), longest), -1, np.int64)
    items[there], events[there] = histories.items[newest], histories.events[newest]
    targets[np.arange(len(histories)), first + kept - 1] = 0  # marks the last position
    nothing = np.zeros((len(histories), 0), np.int64)
    batch = Batch(
        *map(torch.from_numpy, (histories.users, items, events, targets, targets, nothing))
    )
    if histories.context is not None:
        # Only the last position is asked
        columns, weights = (
            np.repeat(array[:, None], longest, axis=1)
            for array in (histories.context.columns, histories.context.weights)
        )
        batch = _in_context(batch, replace(histories.context, columns=columns, weights=weights))
    if histories.times is None or histories.now is None:
        return batch
    # Each event is asked for when it happened, and the unknown next one now, as is all padding
    now, happened = _seconds(histories.now)[:, None], _seconds(histories.times)
    times = np.repeat(now, longest, axis=1)
    times[there] = happened[newest]
    begins = (first > 0) & (sizes > 0)  # the start token is at the first event
    times[begins, 0] = happened[histories.offsets[:-1][begins]]
    asked = np.concatenate([times[:, 1:], now], axis=1)
    return replace(
        batch,
        times=torch.from_numpy(times),
        asked=torch.from_numpy(asked),
        earlier_times=torch.zeros(len(histories), 0, dtype=torch.int64),
    )


def histories_at(
    batch: Batch, window: torch.Tensor, position: torch.Tensor, catalogue_size: int
) -> Histories:
    """Return what each position has seen in its window, as histories.

    window, position: (positions,) int64, where each stands in the batch.
    """
    items = batch.items[window]  # (positions, length)
    places = torch.arange(items.shape[1], device=items.device)
    seen = (places <= position.unsqueeze(1)) & (items != catalogue_size)  # not the start token
    histories = Histories(
        batch.users[window].cpu().numpy(),
        offsets_of(seen.sum(1).cpu().numpy()),
        items[seen].cpu().numpy().astype(np.int32),
        batch.events[window][seen].cpu().numpy().astype(np.int32),
    )
    if batch.context is not None and batch.context_weights is not None:
        columns = batch.context[window, position].cpu().numpy().astype(np.int32)
        weights = batch.context_weights[window, position].cpu().numpy()
        context = FeatureMatrix(columns, weights, int(columns.max(initial=-1)) + 1)
        histories = replace(histories, context=context)
    if batch.times is None or batch.asked is None:
        return histories
    return replace(
        histories,
        times=batch.times[window][seen].cpu().numpy().astype(np.float64),
        now=batch.asked[window, position].cpu().numpy().astype(np.float64),
    )
