"""What the time of a question adds to what a student knows of a user: the gap since the last event,
the hour and the weekday.

    T(t) = G[log_4(1 + gap)] + C[hour of day] + D[day of week]

G and C are tables of vectors that are read between two rows where the gap or the hour lies between
them, C around midnight as well. In an answer T is added to U f_u.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from distilrec.data.dataset import Dataset
from distilrec.engine.time_inputs import DAY, DAYS, HOUR, HOURS, KNOTS, PER_KNOT
from distilrec.networks.batches import Batch, times_of
from distilrec.zones import zone_named


class TimeInputs(nn.Module):
    """T for one student. timezone: of the hours and days.

    Gaps longer than any between two events in the training rows are read as the longest of them.
    """

    reached: torch.Tensor  # the row of G that the longest gap of the training reaches, int64
    starts: torch.Tensor  # of `Zone`
    offsets: torch.Tensor

    def __init__(self, dataset: Dataset, dim: int, timezone: str) -> None:
        super().__init__()
        self.catalogue = dataset.catalogue_size
        zone = zone_named(timezone)
        self.register_buffer("starts", torch.tensor(zone.starts), persistent=False)
        self.register_buffer("offsets", torch.tensor(zone.offsets), persistent=False)
        self.gaps = nn.Parameter(torch.zeros(KNOTS, dim))
        self.nothing = nn.Parameter(torch.zeros(dim))  # in place of G, before the first event
        self.hours = nn.Parameter(torch.zeros(HOURS, dim))
        self.days = nn.Parameter(torch.zeros(DAYS, dim))
        self.register_buffer("reached", torch.tensor(KNOTS - 1))

    def begin(self, dataset: Dataset) -> None:
        """Find the longest gap in the training rows."""
        self.reached.copy_(_knot(torch.tensor(_longest_gap(dataset))))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return T at every position, (batch, length, dim)."""
        times, asked = times_of(batch)
        knot = _knot((asked - times).clamp(min=0)).clamp(max=self.reached)
        first = (batch.items == self.catalogue).unsqueeze(-1)  # the start token
        of_gap = torch.where(first, self.nothing, _between(self.gaps, knot))
        change = torch.searchsorted(self.starts, asked, right=True) - 1
        local = asked + self.offsets[change.clamp(min=0)]
        hours = _between(self.hours, (local % DAY).float() / HOUR)
        days = functional.embedding(local // DAY % DAYS, self.days)
        added: torch.Tensor = of_gap + hours + days
        return added

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the arrays of a bundle."""
        rows = torch.arange(KNOTS, device=self.gaps.device).clamp(max=self.reached)
        return {
            "time_gaps": self.gaps[rows],
            "time_nothing": self.nothing,
            "time_hours": self.hours,
            "time_days": self.days,
        }


class TimeSettings(Protocol):
    """The settings of a network that can be told the time."""

    @property
    def dim(self) -> int: ...
    @property
    def time(self) -> bool: ...
    @property
    def timezone(self) -> str: ...


def time_inputs_of(dataset: Dataset, config: TimeSettings) -> TimeInputs | None:
    """Return the time inputs of a network with these settings, None where they are off or the log
    has no usable times.
    """
    if not config.time or dataset.why_no_times:
        return None
    return TimeInputs(dataset, config.dim, config.timezone)


def _knot(gaps: torch.Tensor) -> torch.Tensor:
    """Return where gaps in seconds lie among the knots, as fractions of knots."""
    return (torch.log2(1.0 + gaps.float()) / PER_KNOT).clamp(max=KNOTS - 1)


def _between(table: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return rows of a table, (…, dim), from places that may lie between two, (…); behind the last
    row comes the first.
    """
    row = place.long()
    share = (place - row).unsqueeze(-1)
    one, next_one = (functional.embedding(rows % len(table), table) for rows in (row, row + 1))
    return torch.lerp(one, next_one, share)


def _longest_gap(dataset: Dataset) -> float:
    """Return the longest time between two training events of a user, in seconds."""
    rows = dataset.is_training()
    users = dataset.user_rows()
    pairs = rows[1:] & rows[:-1] & (users[1:] == users[:-1])
    gaps = (dataset.times[1:] - dataset.times[:-1])[pairs]
    return float(gaps.max(initial=0.0))
