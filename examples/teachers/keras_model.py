"""A Keras 3 model as the teacher: a GRU over the last 20 items. The backend is torch unless
KERAS_BACKEND says otherwise.

KERAS_BACKEND=torch python examples/teachers/keras_model.py [--users 200] [--epochs 5]
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
from shop import distill_from

from distilrec.data import Dataset
from distilrec.teachers import Teacher, from_keras, keras_training_data

LENGTH = 20


def teacher(dataset: Dataset) -> Teacher:
    keras.utils.set_random_seed(0)
    outputs = dataset.info.warm_items + 1  # item 0 is the padding
    model = keras.Sequential(
        [
            keras.layers.Input((LENGTH,), dtype="int32"),
            keras.layers.Embedding(outputs, 32),
            keras.layers.GRU(64),
            keras.layers.Dense(outputs),
        ]
    )
    model.compile(
        keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    inputs, targets = keras_training_data(dataset, LENGTH)
    model.fit(inputs, targets, batch_size=256, epochs=3, verbose=0)
    return from_keras(model, dataset, length=LENGTH, identity="gru 64, 3 epochs, seed 0")


if __name__ == "__main__":
    distill_from("keras", teacher)
