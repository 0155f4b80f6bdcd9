"""The `recurrent` student (the default): S decaying averages of item vectors per user, updated in
O(S d) per event.

    h_t = a * h_{t-1} + sqrt(1 - a^2) * (g_e * x_i),  a = sigmoid(theta)   the state
    c   = [h, x_last + U f_u]                                              the context of the user
    q   = norm(W h + x_last + U f_u + MLP(norm(c)))                        the query (z)
    s_i = q . v_i + b_i,          v_i = E_i + F f_i                        the score (W2 z + b2)

The item vectors of negative events enter with the opposite sign (`[targets]`).

A diagonal linear recurrence as in LRU (Orvieto et al. 2023, eq. 5 to 7, real-valued); norm is
RMSNorm. The MLP reads every time scale by itself: reading only their sum cost .012 to .015 of
validation NDCG@10 on ML-1M (docs/experiments.md). Training runs the recurrence in parallel over
time; the engine runs it one event at a time.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from distilrec.bundle.manifest import CONTEXT
from distilrec.data.dataset import Dataset
from distilrec.errors import ConfigError
from distilrec.networks.batches import Batch
from distilrec.networks.context import context_inputs_of
from distilrec.networks.neighbours import LARGEST_CATALOGUE, Neighbours
from distilrec.networks.on_cpu import dropout, scan
from distilrec.networks.student import Range, Student, StudentSettings
from distilrec.networks.time_inputs import time_inputs_of
from distilrec.networks.visits import begins_visit, visit_gap_of
from distilrec.settings import Count, NotNegative, Share, ZeroOrMore
from distilrec.zones import check_zone

NORM_EPSILON = 1e-6
# Events, the time constant of the slowest scale before training; that of the fastest is one event
_LONGEST = 128.0
# Neighbours of each item where the log has repeats, and the largest catalogue that gets them
_WITH_REPEATS, _LARGEST_WITH_REPEATS = 16, 100_000
_REPEAT_EVENTS = 50  # where the log has repeats
_EVENTS, _EVENTS_WITH_VISITS = 10, 50  # that move the scores of neighbours


class RecurrentConfig(StudentSettings, frozen=True, tag="recurrent"):
    """A linear recurrence over the events, with a query by an MLP."""

    dim: Count = 32
    """Channels of an item vector."""
    scales: Count = 2
    """Number of time scales, S."""
    expansion: Count = 4
    """Width of the query's MLP, in units of `dim`."""
    dropout: Share = 0.1
    """Share of channels that are set to 0 at random in training."""
    max_history: Count = 200
    """Latest events of a user that the model looks at."""
    neighbours: ZeroOrMore | None = None
    """Items whose scores a past event moves by themselves, of each item; 8 to 32 are a good number,
    0 is off. By default 16 where the log has repeats and at most 100,000 items, and 0 elsewhere.
    """
    neighbour_events: Count | None = None
    """Latest events that move the scores of their neighbours, by default 10, and 50 where visits
    are known: all that lies in a basket says what else will.
    """
    repeat_events: ZeroOrMore | None = None
    """Latest events that move the scores of their own items, up or down. By default 50 where the
    log has repeats, and 0 elsewhere, where nothing is recommended twice.
    """
    visit_gap: NotNegative | None = None
    """Seconds without an event that end a visit: events of this visit and of earlier ones move
    scores by weights of their own. By default half an hour where the log has repeats, times, and
    visits of several events; 0 is off.
    """
    time: bool = False
    """Whether the student is told how long ago the last event was, and the hour and the weekday of
    the question, where the log has usable times.
    """
    timezone: str = "UTC"
    """Zone of the hour and the weekday, such as Europe/Berlin."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_zone(self.timezone)


class Recurrent(Student):
    settings = RecurrentConfig
    space: ClassVar = {"scales": Range(1, 6), "expansion": Range(1, 8)}

    def __init__(self, dataset: Dataset, config: RecurrentConfig) -> None:
        super().__init__(dataset, config)
        self._set_up(dataset, config)
        dim = config.dim
        self.gain = nn.Parameter(torch.ones(len(dataset.info.event_types), dim))
        exponents = (
            torch.linspace(0, 1, config.scales) if config.scales > 1 else torch.tensor([0.5])
        )
        steps = (_LONGEST**exponents).unsqueeze(1).expand(-1, dim)  # (scales, dim), in events
        self.theta = nn.Parameter(
            torch.logit(torch.exp(-1 / steps)) + 0.1 * torch.randn(config.scales, dim)
        )
        self.mix = nn.Linear(config.scales * dim, dim, bias=False)
        width = (config.scales + 1) * dim
        self.inner_norm = nn.RMSNorm(width, eps=NORM_EPSILON)
        self.widen = nn.Linear(width, config.expansion * dim)
        self.narrow = nn.Linear(config.expansion * dim, dim)
        self.outer_norm = nn.RMSNorm(dim, eps=NORM_EPSILON)
        self.neighbours = neighbours_of(dataset, config)
        self.time = time_inputs_of(dataset, config)
        self.timezone = None if self.time is None else config.timezone
        self.visit_gap = self.neighbours.visit_gap if self.neighbours is not None else 0.0
        # What the query is told: that the visit goes on, or that one begins
        self.visits = nn.Parameter(torch.zeros(2, dim)) if self.visit_gap else None
        self.context = context_inputs_of(dataset, dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.visits is not None and prefix + "theta" in state_dict:
            # Of a student from before there were visits
            state_dict.setdefault(prefix + "visits", torch.zeros_like(self.visits))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def begin(self, dataset: Dataset) -> None:
        if self.neighbours is not None:
            self.neighbours.begin(dataset)
        if self.time is not None:
            self.time.begin(dataset)

    def encode(self, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
        windows, length = batch.items.shape
        at = (torch.arange(size, device=batch.items.device) for size in (windows, length))
        window, place = torch.meshgrid(*at, indexing="ij")
        return self._with_latest(self._query(*self._known(batch, vectors)), batch, window, place)

    def encode_at(
        self, batch: Batch, vectors: torch.Tensor, window: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        state, latest = self._known(batch, vectors)
        query = self._query(state[window, place], latest[window, place])
        return self._with_latest(query, batch, window, place)

    def _with_latest(
        self, query: torch.Tensor, batch: Batch, window: torch.Tensor, place: torch.Tensor
    ) -> torch.Tensor:
        """Return queries with what `neighbours` has to know behind them."""
        if self.neighbours is None:
            return query
        return torch.cat([query, self.neighbours.latest(batch, window, place)], dim=-1)

    def score(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.neighbours is None:
            return super().score(hidden, vectors, biases, items)
        query, latest = hidden[:, : self.state_dim], hidden[:, self.state_dim :]
        return self.neighbours.add(super().score(query, vectors, biases), latest, items)

    def score_own(
        self,
        hidden: torch.Tensor,
        vectors: torch.Tensor,
        biases: torch.Tensor,
        items: torch.Tensor,
    ) -> torch.Tensor:
        if self.neighbours is None:
            return super().score_own(hidden, vectors, biases, items)
        query, latest = hidden[..., : self.state_dim], hidden[..., self.state_dim :]
        own = super().score_own(query, vectors, biases, items)
        return own + self.neighbours.of(latest, items)

    def _known(self, batch: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return h, (batch, length, scales * dim), and x_last + U f_u + T + C + B, (batch, length,
        dim); T where the student is told the time, C where it is told a context, B where it knows
        visits.
        """
        x = self.look_up(batch, vectors)  # (batch, length, dim)
        x = dropout(x, self.dropout, self.training)
        decay = torch.sigmoid(self.theta)  # (scales, dim)
        # (batch, length, scales, dim)
        inputs = (self.gain[batch.events] * x).unsqueeze(2) * torch.sqrt(1 - decay**2)
        latest = x + self.user_features(batch.users).unsqueeze(1)
        if self.time is not None:
            latest = latest + self.time(batch)
        if self.context is not None:
            latest = latest + self.context(batch)
        if self.visits is not None:
            begins = begins_visit(batch, self.visit_gap) | (
                batch.items == self.items.catalogue_size
            )
            latest = latest + self.visits[begins.long()]
        return scan(inputs, decay).flatten(2), latest

    def _query(self, state: torch.Tensor, latest: torch.Tensor) -> torch.Tensor:
        r = dropout(self.mix(state) + latest, self.dropout, self.training)
        known = dropout(torch.cat([state, latest], dim=-1), self.dropout, self.training)
        q: torch.Tensor = self.outer_norm(
            r + self.narrow(functional.silu(self.widen(self.inner_norm(known))))
        )
        return q

    def arrays(self) -> dict[str, torch.Tensor]:
        return {
            "gain": self.gain if self.signs is None else self.gain * self.signs.unsqueeze(1),
            "decay": torch.sigmoid(self.theta),
            "mix": self.mix.weight,
            "inner_norm": self.inner_norm.weight,
            "widen": self.widen.weight,
            "widen_bias": self.widen.bias,
            "narrow": self.narrow.weight,
            "narrow_bias": self.narrow.bias,
            "outer_norm": self.outer_norm.weight,
            **({} if self.neighbours is None else self.neighbours.arrays()),
            **({} if self.time is None else self.time.arrays()),
            **({} if self.context is None else {CONTEXT: self.context.table}),
            **({} if self.visits is None else {"visit_inputs": self.visits}),
        }


def neighbours_of(dataset: Dataset, config: RecurrentConfig) -> Neighbours | None:
    """Return the term of these settings, None where it is off. Raises ConfigError for a catalogue
    that is too large.
    """
    number = config.neighbours
    if number is None:
        helped = dataset.info.repeats and dataset.catalogue_size <= _LARGEST_WITH_REPEATS
        number = _WITH_REPEATS if helped else 0
    repeats = config.repeat_events
    if repeats is None:
        repeats = _REPEAT_EVENTS if dataset.info.repeats else 0
    if not (number or repeats):
        return None
    if dataset.catalogue_size > LARGEST_CATALOGUE:
        raise ConfigError(
            f"a student with neighbours or repeats can have {LARGEST_CATALOGUE:,} items, and this "
            f"catalogue has {dataset.catalogue_size:,}",
            fix="set neighbours = 0 and repeat_events = 0 in [student]",
            parameter="neighbours",
        )
    gap = visit_gap_of(dataset, config.visit_gap)
    events = config.neighbour_events or (_EVENTS_WITH_VISITS if gap else _EVENTS)
    return Neighbours(dataset, number, events if number else 0, repeats, gap)
