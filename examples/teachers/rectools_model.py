"""A RecTools model as the teacher: EASE here; SASRec, BERT4Rec or LightFM go the same way.

python examples/teachers/rectools_model.py [--users 200] [--epochs 5]
"""

from __future__ import annotations

from rectools.dataset import Dataset as RecToolsDataset
from rectools.models import EASEModel
from shop import distill_from

from distilrec.data import Dataset
from distilrec.teachers import Teacher, from_rectools, training_frame


def teacher(dataset: Dataset) -> Teacher:
    data = RecToolsDataset.construct(training_frame(dataset))
    model = EASEModel(regularization=300.0).fit(data)
    return from_rectools(model, data, dataset)


if __name__ == "__main__":
    distill_from("rectools", teacher)
