"""A Keras 3 model of the next item as a teacher, whatever its backend (torch, TensorFlow, JAX)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.errors import TeacherError
from distilrec.teachers.external import FunctionTeacher, function_teacher

PADDING = 0  # item i of the catalogue is i + 1


def keras_inputs(histories: Histories, length: int) -> NDArray[np.int32]:
    """Return the newest `length` items of each history, (batch, length) int32: item + 1, zeros to
    the left.
    """
    out = np.zeros((len(histories), length), np.int32)
    for k in range(len(histories)):
        items = histories.of(k)[-length:]
        if len(items):
            out[k, -len(items) :] = items + 1
    return out


def keras_training_data(
    dataset: Dataset, length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return training rows as inputs (rows, length) and targets (rows,), both item + 1, for
    `model.fit`.
    """
    rows = dataset.target_rows()
    histories = dataset.histories(dataset.user_rows()[rows], rows)
    return keras_inputs(histories, length), dataset.items[rows] + 1


def from_keras(
    model: Any,
    dataset: Dataset,
    *,
    length: int,
    identity: str,
    per: Literal["event", "user"] = "event",
) -> FunctionTeacher:
    """Return a teacher from a Keras model: (batch, length) int32 of item + 1, padded with 0 to the
    left -> logits.

    The model gives (batch, items with training rows), or one column more, in front, for the
    padding.
    identity: a name of these weights; labels are extracted again when it changes.
    Raises TeacherError when the output has another shape.
    """
    import keras

    warm = dataset.info.warm_items

    def scores(histories: Histories) -> NDArray[np.float32]:
        out = model(keras_inputs(histories, length), training=False)
        logits = np.asarray(keras.ops.convert_to_numpy(out), np.float32)
        if logits.shape == (len(histories), warm + 1):
            return logits[:, 1:]
        if logits.shape != (len(histories), warm):
            raise TeacherError(
                f"the Keras model gives {logits.shape} for {len(histories)} histories",
                fix=f"end it with Dense({warm + 1}) (item 0 is the padding) or Dense({warm}), "
                "without softmax",
            )
        return logits

    return function_teacher(scores, dataset, identity=identity, per=per, max_history=length + 1)
