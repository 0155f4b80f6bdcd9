"""What the context of a question adds to what a student knows of a user,
`distilrec.networks.context`, as numpy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import UNSET

from distilrec.bundle.checks import Arrays, Shapes, require
from distilrec.bundle.format import Bundle
from distilrec.bundle.manifest import CONTEXT, Manifest
from distilrec.engine.embedding import embed_bag
from distilrec.engine.items import Floats
from distilrec.errors import ConfigError
from distilrec.features.encoding import CategoricalEncoding, FeatureEncoder, NumericEncoding

ContextValue = str | float | bool | None
Context = Mapping[str, ContextValue]
"""The values of context features by name; the features that are left out are unknown."""
NOWHERE: Final[Context] = {}


def shapes_of_context(manifest: Manifest, weights: Arrays) -> Shapes:
    """Return the shape of the array of the context inputs; empty for a student without them.
    Raises ValueError where no encoder comes with it.
    """
    encoder = manifest.context_encoder
    if CONTEXT not in weights:
        require(encoder is UNSET, "encodes a context, and has no array that reads it")
        return {}
    require(encoder is not UNSET, "reads a context, and has no encoder of it")
    assert encoder is not UNSET
    return {CONTEXT: (encoder.width, manifest.dim)}


class ContextInputs:
    """C for one student. bundle: of a student that is told a context or is not."""

    def __init__(self, bundle: Bundle) -> None:
        encoder = bundle.manifest.context_encoder
        self.told = encoder is not UNSET
        self._encoder = FeatureEncoder() if encoder is UNSET else encoder
        self._table = bundle.weights.of_kind.get(CONTEXT)
        self._unknown = None if self._table is None else self._vector(NOWHERE)

    def added(self, user: Floats, context: Context | None) -> Floats:
        """Return U f_u + C, (dim,). user: U f_u. Raises ConfigError as `check` does."""
        if self._unknown is None:
            self.check(context or NOWHERE)
            return user
        if not context:
            return user + self._unknown
        self.check(context)
        return user + self._vector(context)

    def check(self, context: Context) -> None:
        """Raise ConfigError for a feature that the student does not know, and for a value of the
        wrong type.
        """
        for name, value in context.items():
            encoding = next((one for one in self._encoder.encodings if one.name == name), None)
            if encoding is None:
                known = ", ".join(one.name for one in self._encoder.encodings)
                raise ConfigError(
                    f"the bundle has no context feature {name!r}; it has: {known or 'none'}",
                    fix="correct the name, or leave it out",
                    parameter=f"context.{name}",
                )
            if value is not None and not _fits(encoding, value):
                numeric = isinstance(encoding, NumericEncoding)
                raise ConfigError(
                    f"the context feature {name!r} is {value!r}, which is not a "
                    + ("finite number" if numeric else "text, a number, true or false"),
                    fix="correct the value, or leave it out where it is not known",
                    parameter=f"context.{name}",
                )

    def unknown(self, context: Context) -> Iterator[str]:
        """Yield the categorical features of a context whose value no training event had."""
        for encoding in self._encoder.encodings:
            value = context.get(encoding.name)
            if isinstance(encoding, CategoricalEncoding) and value is not None:
                (column, _), *_ = FeatureEncoder((encoding,)).encode({encoding.name: value})
                if column == 0:
                    yield encoding.name

    def _vector(self, context: Context) -> Floats:
        assert self._table is not None
        return embed_bag(self._encoder.encode(context), self._table)


def _fits(encoding: object, value: object) -> bool:
    """Return whether a value is of the type of a feature."""
    if isinstance(encoding, NumericEncoding):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, str | bool | int | float)
