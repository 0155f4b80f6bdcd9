"""A RecBole model (general, by user id, or sequential, by history) as a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distilrec.data.dataset import Dataset, Histories
from distilrec.errors import TeacherError
from distilrec.teachers.external import FunctionTeacher, function_teacher


def write_atomic_file(dataset: Dataset, folder: Path, name: str) -> Path:
    """Write the training rows as `folder/name/name.inter`, RecBole's own format, with the ids of
    the log.
    """
    rows = dataset.target_rows()
    users = dataset.user_rows()[rows]
    path = folder / name / f"{name}.inter"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, item, time in zip(users, dataset.items[rows], dataset.times[rows], strict=True):
            file.write(f"{dataset.info.user_ids[user]}\t{dataset.info.item_ids[item]}\t{time}\n")
    return path


def from_recbole(
    model: Any, recbole_dataset: Any, dataset: Dataset, *, identity: str, length: int = 50
) -> FunctionTeacher:
    """Return a teacher from a trained RecBole model; sequential models are asked per event, others
    once per user.

    recbole_dataset: the RecBole data set, whose tokens are the ids of the log. length: of the
    histories that a sequential model was trained on (`MAX_ITEM_LIST_LENGTH`). Items that RecBole
    does not know get the lowest score.
    Raises TeacherError when a user or all items are unknown to RecBole.
    """
    from recbole.data.interaction import Interaction

    sequential = hasattr(model, "ITEM_SEQ")
    items = _item_numbers(model, recbole_dataset, dataset)
    users = _user_numbers(model, recbole_dataset, dataset)
    missing = np.flatnonzero(users[: dataset.info.warm_users] < 0)
    if len(missing) and not sequential:
        raise TeacherError(
            f"RecBole does not know {len(missing):,} users of the log, the first is "
            f"{dataset.info.user_ids[missing[0]]!r}",
            fix="train it on the file of `write_atomic_file(dataset, …)`",
        )
    model.eval()

    @torch.inference_mode()
    def scores(histories: Histories) -> NDArray[np.float32]:
        fields = {model.USER_ID: torch.from_numpy(np.maximum(users[histories.users], 0))}
        if sequential:
            sequences, lengths = _sequences(histories, items, length)
            fields |= {model.ITEM_SEQ: sequences, model.ITEM_SEQ_LEN: lengths}
        all_scores = model.full_sort_predict(Interaction(fields)).view(len(histories), -1).numpy()
        found: NDArray[np.float32] = all_scores[:, items].astype(np.float32)
        unknown = items == 0
        if unknown.any():
            found[:, unknown] = found[:, ~unknown].min(1, keepdims=True)
        return found

    return function_teacher(
        scores,
        dataset,
        identity=identity,
        per="event" if sequential else "user",
        max_history=length + 1,
    )


def _item_numbers(model: Any, recbole_dataset: Any, dataset: Dataset) -> NDArray[np.int64]:
    """Return RecBole's numbers of the items with training rows, (items,), 0 for an unknown one."""
    numbers = recbole_dataset.field2token_id[model.ITEM_ID]
    warm_items = dataset.info.item_ids[: dataset.info.warm_items]
    items = np.array([numbers.get(item, 0) for item in warm_items])
    if not items.any():
        raise TeacherError(
            "RecBole knows no item of the log: the ids do not match",
            fix="train it on the file of `write_atomic_file(dataset, …)`",
        )
    return items


def _user_numbers(model: Any, recbole_dataset: Any, dataset: Dataset) -> NDArray[np.int64]:
    """Return RecBole's numbers of all users, (users,), -1 for an unknown one."""
    numbers = recbole_dataset.field2token_id.get(model.USER_ID, {})
    return np.array([numbers.get(user, -1) for user in dataset.info.user_ids])


def _sequences(
    histories: Histories, items: NDArray[np.int64], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latest items of each history in RecBole's numbers, (batch, length) int64, and
    their number, (batch,).
    """
    sequences = np.zeros((len(histories), length), np.int64)
    lengths = np.ones(len(histories), np.int64)
    for k in range(len(histories)):
        latest = items[histories.of(k)[-length:]]
        latest = latest[latest > 0]
        sequences[k, : len(latest)] = latest
        lengths[k] = max(len(latest), 1)
    return torch.from_numpy(sequences), torch.from_numpy(lengths)
