"""Weights of an earlier training, taken over to data that have grown.

Items are found by their ids, columns of features by their names, event types by theirs. What is new
begins with what stands for the unknown: an item with its features alone, a new value of a feature
with the unknown value of that feature, a new event type with the unknown one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import DatasetInfo
from distilrec.errors import TrainingError
from distilrec.features.encoding import CategoricalEncoding, FeatureEncoder, MultiEncoding
from distilrec.networks.sequence import SequenceModel

_AGES, _REPEATS = "neighbours.ages", "neighbours.repeats"
# What a network has by default follows from its log: with its first repeat, or its second day, a
# log may get neighbours, visits or usable times, and begins with those of a fresh model
_TERMS = re.compile(r"neighbours\.|visits$|time\.|.*\.gaps$")
# Before there were visits, events of earlier ones had the weights of all
_EARLIER = {"neighbours.earlier_ages": _AGES, "neighbours.earlier_repeats": _REPEATS}
# Have a column for each of so many latest events as the log makes the default
_EVENTS = {_AGES, _REPEATS, *_EARLIER}
# What the rows of a tensor are; all other tensors have a size of their own
_ROWS = {
    "items.embedding": "items",
    "items.bias": "items",
    "items.features.table": "item columns",
    "user_features.table": "user columns",
    "context.table": "context columns",
    "gain": "event types",
    "event_types.weight": "event types",
    **dict.fromkeys(_EVENTS, "event types"),
}
# Taken from the training rows when a training begins
_COUNTED = {"neighbours.items", "neighbours.values", "neighbours.units"}
_NEW = -1


@dataclass(frozen=True)
class Start:
    """What a training begins with. weights: by their names in the model; trained_from: (users,),
    the row of each user before which none is trained; key: what the two follow from.
    """

    weights: Mapping[str, torch.Tensor]
    trained_from: NDArray[np.int64]
    key: str

    def load(self, model: SequenceModel) -> None:
        """Put the weights into a model."""
        model.load_state_dict(dict(self.weights))


def carried_over(
    weights: Mapping[str, NDArray[np.generic]],
    model: SequenceModel,
    was: DatasetInfo,
    now: DatasetInfo,
) -> dict[str, torch.Tensor]:
    """Return the weights of a model on data that have grown, by name. model: a fresh one for these
    data. was, now: the data of the weights and of the model.

    The bias of a new item is that of a fresh model, moved by what the training has moved the others
    on average. Raises TrainingError for weights of another model.
    """
    carried = {}
    for name, fresh in model.state_dict().items():
        known = name if name in weights else _EARLIER.get(name, name)
        old = None if known not in weights else torch.from_numpy(weights[known])
        if name in _COUNTED or (old is None and _TERMS.match(name)):
            carried[name] = fresh
        elif old is not None and name in _ROWS:
            places = found_at(_ROWS[name], was, now)
            both = slice(min(old.shape[1], fresh.shape[1]) if name in _EVENTS else None)
            carried[name] = fresh.clone()
            carried[name][..., both] = _rows(name, old[..., both], fresh[..., both], places)
        elif old is not None and old.shape == fresh.shape:
            carried[name] = old
        else:
            raise TrainingError(
                f"the earlier weights do not fit this model: {name} is of another shape",
                fix="train the whole run again (distilrec run)",
            )
    return carried


def _rows(
    name: str, old: torch.Tensor, fresh: torch.Tensor, places: NDArray[np.int64]
) -> torch.Tensor:
    """Return the rows of a tensor from those of the earlier one. places: of each row, in the
    earlier tensor.
    """
    kept = torch.from_numpy(places != _NEW)
    rows = torch.zeros_like(fresh)
    if name == "items.bias":
        moved = old[torch.from_numpy(places)[kept]] - fresh[kept]
        rows = fresh + (moved.mean() if len(moved) else 0.0)
    rows[kept] = old[torch.from_numpy(places)[kept]]
    return rows


def found_at(what: str, was: DatasetInfo, now: DatasetInfo) -> NDArray[np.int64]:
    """Return where each of these rows stood in the earlier data, -1 for a new one without a
    stand-in.
    """
    match what:
        case "items":
            return places_in(was.item_ids[: was.warm_items], now.item_ids[: now.warm_items])
        case "item columns":
            return columns_at(was.item_encoder, now.item_encoder)
        case "user columns":
            return columns_at(was.user_encoder, now.user_encoder)
        case "context columns":
            return columns_at(was.context_encoder, now.context_encoder)
        case _:
            return places_in(was.event_types, now.event_types, ["unknown"] * len(now.event_types))


def columns_at(was: FeatureEncoder, now: FeatureEncoder) -> NDArray[np.int64]:
    """Return where each column of an encoder stands in an earlier one, (columns,): a value that is
    new there at the unknown value of its feature; -1 where there is neither.
    """
    stand_ins = []
    for encoding in now.encodings:
        names = FeatureEncoder((encoding,)).column_names()
        listed = isinstance(encoding, CategoricalEncoding | MultiEncoding)
        stand_ins += names[:1] * len(names) if listed else names
    return places_in(was.column_names(), now.column_names(), stand_ins)


def places_in(
    was: Sequence[str], now: Sequence[str], stand_ins: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Return where each of these names stood before, or its stand-in; -1 for one that has no
    place.
    """
    places = {name: place for place, name in enumerate(was)}
    others = [places.get(name, _NEW) for name in stand_ins] or [_NEW] * len(now)
    found = [places.get(name, other) for name, other in zip(now, others, strict=True)]
    return np.array(found, np.int64)
