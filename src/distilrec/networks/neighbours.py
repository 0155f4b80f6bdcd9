"""What the latest events of a user add to the scores of their neighbours and of their own items: a
sparse items x items term beside a student's query.

    s_i += sum over the latest events of w[e, age] S[j, i] + r[e, age] (i = j),   j the item, e the
    type of the event

S has `number` neighbours i of each item j, from a regression on the training rows
(`distilrec.networks.transitions`), in 8 bits; w is learned. A pair that S has from a row says
nothing about how well S foretells this row, and S has one value for every few pairs: so S is not
learned, and while w is, each user meets the S of other users, of whom there are `_PARTS` groups.
r, what a choice says of the same one again, is learned too: below 0 for what lies in the basket,
above it for what was bought some weeks ago. A query of a few channels cannot say this of one item.
Where visits are known, events of earlier ones have a w and an r of their own: what stands next to
milk in a basket is not what is bought a week after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from distilrec.bundle.manifest import REPEATS, VISITS
from distilrec.data.dataset import Dataset
from distilrec.networks.batches import Batch
from distilrec.networks.transitions import largest_transitions
from distilrec.networks.visits import visits_of

LARGEST_CATALOGUE = 2**24  # whole numbers up to here are float32
_PARTS = 5
_LEVELS = 127.0  # of the values of an item's row, up to the largest
_DECAY = 0.8  # of w by age, before training
_LARGEST = 3.0  # the largest value of S: with w = 1, its part of a logit


class Neighbours(nn.Module):
    """The term for one student. An item without training rows neither has neighbours nor is one.

    What an answer has to know of a user travels behind the query, as float32: the latest items plus
    1, the latest first, 0 where there was none, and the types of their events, (…, 2 n), n the
    larger of both numbers of events; in training also which S the user meets. The types of events
    of earlier visits stand behind the others.
    events, repeats: how many latest events w and r have; visit_gap: seconds without an event that
    end a visit, 0 where visits are not known.
    """

    items: torch.Tensor  # (warm items, number) int32, rising in each row
    values: torch.Tensor  # S in units of the row, (warm items, number) int8
    units: torch.Tensor  # (warm items,)
    part_items: torch.Tensor  # the same for training, ((1 + parts) warm items, number): S, then
    part_values: torch.Tensor  # those without the users of each part, float32

    def __init__(
        self, dataset: Dataset, number: int, events: int, repeats: int, visit_gap: float = 0.0
    ) -> None:
        super().__init__()
        self.visit_gap = visit_gap
        self.events = max(events, repeats)
        self.catalogue, self.warm = dataset.catalogue_size, dataset.info.warm_items
        number = min(number, self.warm)
        pattern = torch.arange(number, dtype=torch.int32).expand(self.warm, number)
        self.register_buffer("items", pattern.contiguous())
        self.register_buffer("values", torch.zeros(self.warm, number, dtype=torch.int8))
        self.register_buffer("units", torch.ones(self.warm))
        for name, dtype in (("part_items", torch.int32), ("part_values", torch.float32)):
            nothing = torch.zeros(1, 1, dtype=dtype).expand((1 + _PARTS) * self.warm, number)
            self.register_buffer(name, nothing, persistent=False)
        fading = _DECAY ** torch.arange(events, dtype=torch.float32)
        ages = fading.expand(len(dataset.info.event_types), events).clone()
        if dataset.roles is not None and dataset.roles.signs is not None:
            ages *= torch.from_numpy(dataset.roles.signs).unsqueeze(1)
        self.ages = nn.Parameter(ages)  # w
        self.repeats = nn.Parameter(torch.zeros(len(ages), repeats))  # r
        if visit_gap:  # the same of events of earlier visits
            self.earlier_ages = nn.Parameter(ages.clone())
            self.earlier_repeats = nn.Parameter(torch.zeros(len(ages), repeats))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if prefix + "ages" in state_dict:  # of a student from before there were repeats: r is 0
            state_dict.setdefault(prefix + "repeats", torch.zeros_like(self.repeats))
        if self.visit_gap and prefix + "ages" in state_dict:  # from before there were visits
            for name in ("ages", "repeats"):
                state_dict.setdefault(f"{prefix}earlier_{name}", state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *others)

    @torch.no_grad()
    def begin(self, dataset: Dataset) -> None:
        """Take S from the training rows, and for training without the users of each part."""
        number, device = self.items.shape[1], self.ages.device
        if not number:
            return
        items, values, scale = [], [], 0.0
        for found, weights in largest_transitions(dataset, number, _PARTS, self.visit_gap):
            scale = scale or _LARGEST / max(float(weights.max(initial=0.0)), 1e-6)
            items.append(torch.from_numpy(found))
            values.append(scale * torch.from_numpy(weights).clamp(min=0))
        whole = values[0]
        units = whole.amax(1).clamp(min=1e-6) / _LEVELS
        self.units.copy_(units)
        self.items.copy_(items[0])
        self.values.copy_(torch.round(whole / units.unsqueeze(1)))
        self.part_items = torch.cat(items).to(device)
        self.part_values = torch.cat(values).to(device)

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
        if self.visit_gap:
            this, asked = visits_of(batch, self.visit_gap)
            earlier = this[window, before] < asked[window, place.unsqueeze(-1)]
            events = events + len(self.ages) * (earlier & there)
        known = [torch.where(there, items + 1, 0), events]
        if self.training:
            known.append(batch.users[window] % _PARTS + 1)
        return torch.cat(known, dim=-1).float()

    def add(
        self, logits: torch.Tensor, latest: torch.Tensor, items: torch.Tensor | None
    ) -> torch.Tensor:
        """Add the term to logits, (positions, columns), in place, and return them: a second tensor
        of their size would cost more than the term.

        items: of the columns, (columns,), in the warm items; None for the first of the catalogue.
        """
        rows, weights = self._rows(latest)  # (positions, n)
        own, again = self._weighed(latest, *self._repeats())
        pattern, table = self._tables()
        values = torch.cat([(table[rows] * weights.unsqueeze(-1)).flatten(1), again], dim=1)
        columns = torch.cat([pattern[rows].long().flatten(1), own], dim=1)
        if items is not None:
            places = items.new_full((self.warm,), -1)
            places[items] = torch.arange(len(items), device=items.device)
            columns = places[columns]
            values = torch.where(columns < 0, 0.0, values)
            columns = columns.clamp(min=0)
        return logits.scatter_add_(1, columns, values.to(logits.dtype))

    def of(self, latest: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Return the term for items that differ by position, (…), which broadcast against `latest`
        without its last axis.
        """
        rows, weights = self._rows(latest)  # (…, n)
        own, again = self._weighed(latest, *self._repeats())
        same = torch.where(own == items.unsqueeze(-1), again, 0.0).sum(-1)
        if not self.items.shape[1]:
            return same
        pattern, table = self._tables()
        first = self.warm * torch.arange(len(pattern), device=items.device).unsqueeze(1)
        pairs = (pattern + first).flatten()  # rising
        wanted = items.unsqueeze(-1) + self.warm * rows
        found = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
        values = torch.where(pairs[found] == wanted, table.flatten()[found], 0.0)
        return (values * weights).sum(-1) + same

    def _rows(self, latest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of S that count and the weight of each, (…, n)."""
        tables = (self.ages, self.earlier_ages) if self.visit_gap else (self.ages,)
        items, weights = self._weighed(latest, *tables)
        if self.training:
            items = items + self.warm * latest[..., 2 * self.events :].long()
        return items, weights

    def _repeats(self) -> tuple[torch.Tensor, ...]:
        return (self.repeats, self.earlier_repeats) if self.visit_gap else (self.repeats,)

    def _weighed(
        self, latest: torch.Tensor, *tables: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the items of the latest events that tables of weights, (event types, n), have, and
        the weight of each, (…, n); both 0 where there is no such item.
        """
        table = torch.cat(tables)
        number = table.shape[1]
        items = latest[..., :number].long()
        events = latest[..., self.events : self.events + number].long()
        there = (items > 0) & (items <= self.warm)
        weights = table[events, torch.arange(number, device=latest.device)]
        return torch.where(there, items - 1, 0), torch.where(there, weights, 0.0)

    def _tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the neighbours of each row of S and their values, as it is served where it is not
        in training.
        """
        if self.training:
            return self.part_items, self.part_values
        return self.items, self.values * self.units.unsqueeze(-1)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the arrays of a bundle."""
        return {
            "neighbours": self.items,
            "neighbour_values": self.values,
            "neighbour_units": self.units,
            "neighbour_ages": self.ages,
            **({REPEATS: self.repeats} if self.repeats.numel() or self.visit_gap else {}),
            **(
                {VISITS: self.earlier_ages, "earlier_repeats": self.earlier_repeats}
                if self.visit_gap
                else {}
            ),
        }
