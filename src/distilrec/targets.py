"""What the events of a log mean: which are to be predicted (targets), which only inform, and which
are negative.

An event type has one role. Where a rating or another weight decides, its events are divided into
three types: those that are targets keep the name, the others are `<type>:inform` and
`<type>:negative`. An event type that is not named only informs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distilrec.errors import ConfigError
from distilrec.settings import NotNegative, Positive, Settings

Role = Literal["target", "inform", "negative"]
ROLES: tuple[Role, ...] = get_args(Role)
_NO_ITEMS = np.zeros(0, np.int32)


class EventRole(Settings, frozen=True):
    """What the events of one type mean."""

    event_type: str = "interaction"
    """Name of the type; "interaction" is that of all events of a log without event types."""
    role: Role = "target"
    """What is to be predicted ("target"); what is in the history and is never predicted
    ("inform"); or what the user wants less of ("negative").
    """
    target_from: float | None = None
    """Smallest weight of a target; events with a lower one only inform, or are negative."""
    negative_to: float | None = None
    """Largest weight of a negative event, below `target_from`."""
    loss_weight: Positive = 1.0
    """Weight of these targets in the loss."""

    @property
    def by_weight(self) -> bool:
        """Whether the weight of an event decides."""
        return self.target_from is not None or self.negative_to is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.role != "target" and (self.by_weight or self.loss_weight != 1.0):
            raise ConfigError(
                f'the event type {self.event_type!r} has the role "{self.role}", and limits or a '
                "weight of a target",
                fix='leave out target_from, negative_to and loss_weight, or set role = "target"',
                parameter="targets.events",
            )
        low, high = self.negative_to, self.target_from
        if low is not None and high is not None and low >= high:
            raise ConfigError(
                f"the event type {self.event_type!r} has negative_to = {low:g} and target_from = "
                f"{high:g}",
                fix="give a negative_to below target_from",
                parameter="targets.events",
            )

    def name_of(self, role: Role) -> str:
        """Return what the events of this type with a role are called."""
        return self.event_type if role == self.role else f"{self.event_type}:{role}"

    def roles(self) -> dict[str, Role]:
        """Return the role of each type that the events of this one are divided into."""
        roles: tuple[Role, ...] = ROLES if self.by_weight else (self.role,)
        return {self.name_of(role): role for role in roles}

    def line(self) -> str:
        """Return what a report says of it."""
        if not self.by_weight:
            weighs = "" if self.loss_weight == 1.0 else f", {self.loss_weight:g} times in the loss"
            return f"{self.event_type}: {self.role}{weighs}"
        parts = []
        if self.target_from is not None:
            parts.append(f"target from a weight of {self.target_from:g} on")
        if self.negative_to is not None:
            parts.append(f"negative up to a weight of {self.negative_to:g}")
        if self.target_from is None:
            parts.append("target above it")
        elif self.negative_to is None:
            parts.append("below it informs")
        else:
            parts.append("informs between them")
        if self.loss_weight != 1.0:
            parts.append(f"{self.loss_weight:g} times in the loss")
        return f"{self.event_type}: " + ", ".join(parts)


class Targets(Settings, frozen=True):
    """What the events mean. Without this section every event is a target; with it, an event type
    that is not named only informs.
    """

    events: tuple[EventRole, ...]
    """What the events of each type mean."""
    negative_weight: NotNegative = 1.0
    """Weight in the loss of the term of negative events; 0 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [name for event in self.events for name in event.roles()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"[targets] gives {twice[0]!r} two meanings",
                fix="name each event type once",
                parameter="targets.events",
            )
        if all(event.role != "target" for event in self.events):
            raise ConfigError(
                "[targets] has no event type that is a target",
                fix='for example events = [{ event_type = "purchase" }, { event_type = "view", '
                'role = "inform" }]',
                parameter="targets.events",
            )

    @property
    def by_weight(self) -> tuple[EventRole, ...]:
        """Those whose events are divided by weight."""
        return tuple(event for event in self.events if event.by_weight)

    def roles(self) -> dict[str, Role]:
        """Return the role of each type that is named, after the division by weight."""
        return {name: role for event in self.events for name, role in event.roles().items()}

    def lines(self) -> tuple[str, ...]:
        """Return what a report says of the events, a line for each type that is named."""
        return (*(event.line() for event in self.events), "any other type: inform")

    def loss_weights(self) -> dict[str, float]:
        """Return the weight in the loss of each type of targets."""
        return {event.name_of("target"): event.loss_weight for event in self.events
                if event.role == "target"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Roles:
    """The roles of event types, by their number.

    target, negative: (types,) bool; loss_weight: (types,) float32, 0 for all but targets.
    """

    target: NDArray[np.bool_]
    negative: NDArray[np.bool_]
    loss_weight: NDArray[np.float32]

    @property
    def signs(self) -> NDArray[np.float32] | None:
        """The sign with which an event of each type enters a history, (types,): -1 for a negative
        one, 1 for others; None where no type is negative.
        """
        if not self.negative.any():
            return None
        return np.where(self.negative, -1, 1).astype(np.float32)

    @property
    def weighted(self) -> bool:
        """Whether some targets weigh more than others in the loss."""
        return len(np.unique(self.loss_weight[self.target])) > 1


def roles_of(targets: Targets, event_types: Sequence[str]) -> Roles:
    """Return the roles of these event types."""
    roles, weights = targets.roles(), targets.loss_weights()
    found = [roles.get(name, "inform") for name in event_types]
    return Roles(
        np.array([role == "target" for role in found]),
        np.array([role == "negative" for role in found]),
        np.array([weights.get(name, 0.0) for name in event_types], np.float32),
    )


def roles_by_type(roles: Sequence[Role]) -> Roles:
    """Return the roles of event types, given in their order; all targets weigh the same."""
    target = np.array([role == "target" for role in roles], bool)
    negative = np.array([role == "negative" for role in roles], bool)
    return Roles(target, negative, target.astype(np.float32))


def still_hidden(
    hidden: NDArray[np.int32] | None,
    items: NDArray[np.int32],
    kinds: NDArray[np.int32],
    roles: Roles,
) -> NDArray[np.int32] | None:
    """Return the items that a user does not want to see after more events, None for none. hidden:
    those before; others as of `hidden_items`.
    """
    found = hidden_items(items, kinds, roles)
    if hidden is not None:
        deciding = roles.target[kinds] | roles.negative[kinds]
        found = np.union1d(hidden[~np.isin(hidden, items[deciding])], found)
    return found if len(found) else None


def hidden_items(
    items: NDArray[np.int32], kinds: NDArray[np.int32], roles: Roles
) -> NDArray[np.int32]:
    """Return the items that a user does not want to see: those with a negative event and no target
    event after it, (n,) in rising order.

    items, kinds: (events,), oldest first, items and the numbers of the event types.
    """
    deciding = np.flatnonzero(roles.target[kinds] | roles.negative[kinds])[::-1]
    if not roles.negative[kinds[deciding]].any():
        return _NO_ITEMS
    found, latest = np.unique(items[deciding], return_index=True)
    hidden: NDArray[np.int32] = found[roles.negative[kinds[deciding[latest]]]]
    return hidden
