"""Groups of users and items that quality is looked at by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import UNKNOWN_ITEM, Dataset
from distilrec.features.encoding import CategoricalEncoding, NumericEncoding

_MOST_VALUES = 12  # of a categorical feature: more are no groups
_FEWEST_USERS = 20


def item_groups(popular: NDArray[np.int64], count: int = 3) -> NDArray[np.int64]:
    """Return the group of every item, (items,), the most popular first: each had the same share of
    the training interactions.

    Of three groups, 0 is head, 1 middle and 2 tail.
    """
    before = np.cumsum(popular) - popular
    groups: NDArray[np.int64] = np.minimum(count * before // max(popular.sum(), 1), count - 1)
    return groups


def target_slices(
    dataset: Dataset, targets: NDArray[np.int32], users: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Return the groups of held-out items. Head, middle and tail items each had a third of the
    training interactions.
    """
    third = item_groups(dataset.popularity())
    in_catalogue = targets != UNKNOWN_ITEM
    warm = in_catalogue & (targets < dataset.info.warm_items)
    return {
        "head items": warm & (third[targets] == 0),
        "middle items": warm & (third[targets] == 1),
        "tail items": warm & (third[targets] == 2),
        "cold items": in_catalogue & ~warm,
        **user_slices(dataset, users),
    }


def user_slices(dataset: Dataset, users: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Return the groups of users by the length of their training history and by their features,
    (users,) bool each.
    """
    history = (dataset.train_end - dataset.offsets[:-1])[users]
    low, high = np.quantile(history, [1 / 3, 2 / 3]) if len(history) else (0.0, 0.0)
    return {
        f"short history (up to {low:.0f})": history <= low,
        f"medium history (up to {high:.0f})": (history > low) & (history <= high),
        f"long history (over {high:.0f})": history > high,
        "cold users": history == 0,
        **_feature_groups(dataset, users),
    }


def _feature_groups(dataset: Dataset, users: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """Return users by the value of each categorical feature with few values, and by thirds of each
    number.

    Groups of fewer than 20 users are left out: what is said of them would be chance, and about
    people.
    """
    columns, weights = dataset.user_features.columns[users], dataset.user_features.weights[users]
    groups: dict[str, NDArray[np.bool_]] = {}
    start = 0
    for encoding in dataset.info.user_encoder.encodings:
        match encoding:
            case CategoricalEncoding() if len(encoding.values) <= _MOST_VALUES:
                for slot, value in enumerate(("unknown", *encoding.values), start=start):
                    groups[f"{encoding.name} {value}"] = ((columns == slot) & (weights > 0)).any(
                        axis=1
                    )
            case NumericEncoding():
                quantile = np.where(columns == start, weights, 0).sum(axis=1)
                missing = ((columns == start + 1) & (weights > 0)).any(axis=1)
                third = np.minimum((quantile + 1) * 1.5, 2).astype(np.int64)
                for number, name in enumerate(("lowest", "middle", "highest")):
                    groups[f"{encoding.name}, {name} third"] = ~missing & (third == number)
                groups[f"{encoding.name} unknown"] = missing
            case _:
                pass
        start += encoding.width
    return {
        name: inside
        for name, inside in groups.items()
        if len(np.unique(users[inside])) >= _FEWEST_USERS
    }
