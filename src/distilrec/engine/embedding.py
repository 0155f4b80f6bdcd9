"""Features as vectors: the weighted sums of the rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from distilrec.engine.items import Floats
from distilrec.errors import ConfigError
from distilrec.features.encoding import FeatureEncoder

# 0 for a new item, under another name where the catalogue has such a column.
DERIVED = "popularity", "sales_volume"


def embed_bag(bag: Iterable[tuple[int, float]], table: Floats) -> Floats:
    """Return the weighted sum of table rows, (dim,) float32."""
    out = np.zeros(table.shape[1], np.float32)
    for column, weight in bag:
        out += np.float32(weight) * table[column]
    return out


def embed_features(
    features: Mapping[str, object],
    encoder: FeatureEncoder,
    table: Floats,
    entity: str,
    *,
    strict: bool = True,
) -> Floats:
    """Return the vector of features, (dim,) float32. entity: whose they are, for the message.

    Raises ConfigError for a feature that the encoder does not have, where that is `strict`.
    """
    known = {encoding.name for encoding in encoder.encodings}
    if strict and (wrong := sorted(set(features) - known - set(DERIVED))):
        raise ConfigError(
            f"the bundle has no {entity} feature {wrong[0]!r}; it has: "
            f"{', '.join(sorted(known)) or 'none'}",
            fix="correct the name",
            parameter=wrong[0],
        )
    return embed_bag(encoder.encode(features), table)
