"""Labels stay on disk, and are read by row."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from distilrec.errors import LabelStoreError
from distilrec.labels import extract
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.labels.store import FORMAT_VERSION, StoredLabels, open_labels
from distilrec.networks.transformer import TransformerConfig
from distilrec.teachers.external import function_teacher
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import train_model
from tests.small_run import dataset

CONFIG = LabelConfig(top_k=7, samples=9)


@pytest.fixture(scope="module")
def small():
    return dataset()


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(extract, "_BATCH", 4)
    monkeypatch.setattr(extract, "_BATCHES_PER_SHARD", 2)


def teacher_per(key, small):
    """A network, which answers per event, or a function, which answers per user."""
    if key == "event":
        config = TransformerConfig(dim=8, layers=1, heads=2, max_history=6)
        return ModelTeacher(train_model(config, small, TrainingConfig(epochs=1), seed=0))
    waves = np.arange(small.info.warm_items)
    return function_teacher(
        lambda histories: np.stack([np.sin(waves * (1 + user)) for user in histories.users]),
        small,
        identity="waves",
        per="user",
    )


def extracted(small, folder, config=CONFIG, key="user"):
    return extract_labels(teacher_per(key, small), small, folder, config, seed=3)


def training_rows(small):
    return torch.from_numpy(small.training_rows())


@pytest.mark.parametrize("key", ["event", "user"])
def test_what_is_looked_up_is_what_was_extracted(small, tmp_path, monkeypatch, small_shards, key):
    made, label_records = [], extract._label_records

    def keep(*arguments):
        made.append(label_records(*arguments))
        return made[-1]

    monkeypatch.setattr(extract, "_label_records", keep)
    states = key == "event"
    config = LabelConfig(top_k=7, samples=9, states=states)
    labels = extracted(small, tmp_path, config, key)
    assert labels.manifest.key == key
    assert labels.manifest.shards > 3
    records = np.concatenate(made)
    assert np.array_equal(labels.hard_labels(), records["top_items"][:, 0])
    by_key = {int(record["key"]): record for record in records}
    rows = training_rows(small)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    keys = rows.numpy() if key == "event" else small.user_rows()[rows.numpy()]
    expected = np.stack([by_key[int(one)] for one in keys])
    for name, got in vars(labels.at(rows)).items():
        wanted = np.int64 if name.endswith("items") else np.float32
        assert got.numpy().dtype == wanted, name
        assert np.array_equal(got.numpy(), expected[name].astype(wanted)), name
    if states:
        assert np.array_equal(labels.states_at(rows).numpy(), expected["state"].astype(np.float32))
    assert all(len(value) == 0 for value in vars(labels.at(rows[:0])).values())


@pytest.mark.parametrize("key", ["event", "user"])
def test_labels_of_the_newest_rows_are_those_of_all(small, tmp_path, key):
    """A teacher that is asked once per user has one label for all rows."""
    every = extracted(small, tmp_path / "all", key=key)
    trained_from = small.train_end - 2
    # All rows of one user, none of another
    trained_from[0], trained_from[1] = 0, small.train_end[1]
    teacher, folder = teacher_per(key, small), tmp_path / "new"
    labels = extract_labels(teacher, small, folder, CONFIG, seed=3, trained_from=trained_from)
    rows = training_rows(small)
    new = rows.numpy() >= trained_from[small.user_rows()[rows.numpy()]]
    if key == "user":
        assert labels.extraction.events == len(rows)
        assert torch.equal(labels.at(rows).top_items, every.at(rows).top_items)
        return
    assert labels.extraction.events == len(labels) == new.sum()
    assert 0 < new.sum() < len(rows)
    ours, theirs = (of.at(rows[new]) for of in (labels, every))
    assert (ours.top_items == theirs.top_items).float().mean() > 0.9  # half a window is context
    torch.testing.assert_close(ours.rest_log_sum, theirs.rest_log_sum, atol=0.5, rtol=0.0)
    for row in rows[~new][:5]:
        with pytest.raises(LabelStoreError):
            labels.at(row[None])


def test_a_look_up_copies_a_few_records_of_a_map(small, tmp_path, small_shards):
    labels = extracted(small, tmp_path)
    maps = [array.map() for array in (*labels._shards, labels._index)]
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in maps)
    one = labels.at(training_rows(small)[:3])
    for value in vars(one).values():
        assert len(value) == 3
        assert not any(np.may_share_memory(value.numpy(), array) for array in maps)
    one.top_items.zero_()
    assert labels.at(training_rows(small)[:3]).top_items.any()


def test_memory_does_not_grow_with_the_labels(small, tmp_path, small_shards):
    """Opening and looking up a few rows takes a small part of what lies on disk."""
    made = extracted(small, tmp_path, LabelConfig(top_k=7, samples=20_000))
    rows = training_rows(small)
    tracemalloc.start()
    labels = open_labels(tmp_path, small)
    for row in rows[::20]:
        labels.at(row[None])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.extraction.bytes / 4


def test_a_copy_in_another_process_reads_the_same_files(small, tmp_path, small_shards, monkeypatch):
    """Workers get paths, not labels, whatever the working folder of the process was."""
    monkeypatch.chdir(tmp_path)
    labels = extract_labels(
        teacher_per("user", small), small, tmp_path.relative_to(tmp_path) / "here", CONFIG, seed=3
    )
    content = pickle.dumps(labels)
    assert len(content) < labels.extraction.bytes
    monkeypatch.chdir("/")
    rows = training_rows(small)
    assert torch.equal(pickle.loads(content).at(rows).top_items, labels.at(rows).top_items)


@pytest.mark.parametrize("name", ["labels-00001.npy", "index.npy"])
def test_damaged_files_are_named(small, tmp_path, small_shards, name):
    labels = extracted(small, tmp_path)
    rows, file = training_rows(small), tmp_path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LabelStoreError, match=f"{name} is not the file that manifest.json names"):
        open_labels(tmp_path, small)
    file.write_bytes(whole[:-9])
    with pytest.raises(LabelStoreError, match=f"{name} has {len(whole) - 9} bytes instead of"):
        open_labels(tmp_path, small)
    # While a student is trained
    with pytest.raises(LabelStoreError, match=f"{name} cannot be read: .*length") as caught:
        labels.at(rows)
    assert caught.value.context["file"] == str(file)
    file.unlink()
    with pytest.raises(LabelStoreError, match=f"{name} is missing"):
        open_labels(tmp_path, small)
    with pytest.raises(LabelStoreError, match=f"{name} cannot be read"):
        labels.at(rows)


@pytest.mark.parametrize("spoiled", [b"", b"\x93NUMPY", b"PAR1 of another format"])
def test_a_damaged_shard_of_an_unfinished_extraction_is_made_again(
    small, tmp_path, small_shards, spoiled
):
    whole = extracted(small, tmp_path / "whole")
    parts = tmp_path / "parts"
    extracted(small, parts)
    made_from = extract.key_of(whole.manifest, FORMAT_VERSION)
    (parts / "manifest.json").unlink()
    (parts / "unfinished").write_text(made_from)
    (parts / "labels-00001.npy").write_bytes(spoiled)
    with pytest.raises(LabelStoreError, match=r"labels-00001\.npy cannot be read, and has been"):
        extracted(small, parts)
    again, rows = extracted(small, parts), training_rows(small)
    assert same(again.at(rows), whole.at(rows))


def test_labels_of_the_format_before_are_extracted_again(small, tmp_path):
    whole = extracted(small, tmp_path)
    manifest, rows = tmp_path / "manifest.json", training_rows(small)
    now = f'"format_version": {FORMAT_VERSION}'
    assert now in manifest.read_text()
    manifest.write_text(manifest.read_text().replace(now, '"format_version": 3'))
    (tmp_path / "labels-00000.parquet").write_bytes(b"of format 3")
    with pytest.raises(LabelStoreError, match="format 3; this distilrec reads 4") as caught:
        open_labels(tmp_path, small)
    assert "extract the labels again" in str(caught.value)
    assert same(extracted(small, tmp_path).at(rows), whole.at(rows))
    assert not list(tmp_path.glob("*.parquet"))


def test_a_row_without_labels_is_named(small, tmp_path):
    labels = extracted(small, tmp_path, key="event")
    row = int(np.flatnonzero(~small.is_training())[0])
    with pytest.raises(LabelStoreError, match=f"no labels are stored for row {row} of"):
        labels.at(torch.tensor([0, row]))


def same(one: StoredLabels, two: StoredLabels) -> bool:
    return all(torch.equal(vars(one)[name], vars(two)[name]) for name in vars(one))
