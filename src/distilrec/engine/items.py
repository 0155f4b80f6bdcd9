"""The item vectors and biases of a student, with room for items that come later."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int32]
Mask = NDArray[np.uint8]
CHANNELS = 8  # that the compiled loops take at once
TILE = 4_096  # items of a pass of the scan in integers


class ItemTable:
    """Item vectors and biases with room to grow: adding an item copies nothing most of the time."""

    def __init__(self, vectors: Floats, biases: Floats) -> None:
        self.count = len(vectors)
        self._vectors, self._biases = vectors, biases

    @property
    def vectors(self) -> Floats:
        return self._vectors[: self.count]

    @property
    def biases(self) -> Floats:
        return self._biases[: self.count]

    @property
    def room(self) -> int:
        return len(self._vectors)

    def put(self, item: int, vector: Floats, bias: float) -> None:
        if item == self.room:
            more = max(64, item // 8)
            self._vectors = np.vstack(
                [self._vectors, np.zeros((more, vector.shape[0]), np.float32)]
            )
            self._biases = np.append(self._biases, np.zeros(more, np.float32))
        self._vectors[item], self._biases[item] = vector, bias
        self.count = max(self.count, item + 1)


def columns_of(vectors: Floats) -> Floats:
    """Item vectors transposed, (channels, items), with channels of zeros up to a multiple of what
    the kernels take.
    """
    columns = np.zeros((channels_of(vectors.shape[1]), len(vectors)), np.float32)
    columns[: vectors.shape[1]] = vectors.T
    return columns


def channels_of(dim: int) -> int:
    """Return the next multiple of what the kernels take at once."""
    return dim + -dim % CHANNELS
