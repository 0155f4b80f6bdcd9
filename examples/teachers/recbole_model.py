"""A RecBole model as the teacher: GRU4Rec, asked for every event. General models (BPR, LightGCN …)
go the same way.

python examples/teachers/recbole_model.py [--users 200] [--epochs 5]
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import GRU4Rec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from shop import distill_from

from distilrec.data import Dataset
from distilrec.teachers import Teacher, from_recbole, write_atomic_file

LENGTH = 50


def teacher(dataset: Dataset) -> Teacher:
    folder = Path(tempfile.mkdtemp())
    write_atomic_file(dataset, folder, "log")
    settings = {
        "data_path": str(folder), "checkpoint_dir": str(folder),
        "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": LENGTH, "train_neg_sample_args": None, "epochs": 3, "seed": 0,
        "use_gpu": False, "show_progress": False, "state": "ERROR",
        "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"},
    }  # fmt: skip
    config = Config(model="GRU4Rec", dataset="log", config_dict=settings)
    init_seed(0, reproducibility=True)
    logging.getLogger().setLevel(logging.ERROR)
    data = create_dataset(config)
    training, validation, _ = data_preparation(config, data)
    model = GRU4Rec(config, training.dataset)
    Trainer(config, model).fit(training, validation, saved=False, show_progress=False)
    return from_recbole(model, data, dataset, identity="gru4rec, 3 epochs, seed 0", length=LENGTH)


if __name__ == "__main__":
    distill_from("recbole", teacher)
