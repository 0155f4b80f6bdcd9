"""The names in a run folder, those of earlier versions too."""

from __future__ import annotations

import shutil

import pytest

from distilrec import load, runs
from distilrec.data.dataset import load_dataset
from distilrec.runs.places import Places
from distilrec.training.trained import load_model


def renamed_to_what_they_were(finished_run, tmp_path):
    """Return a copy of a run as an earlier version would have left it."""
    folder = shutil.copytree(finished_run.folder, tmp_path / "run")
    (folder / "baseline").rename(folder / "alone")
    (folder / "bundle-baseline").rename(folder / "bundle-alone")
    return folder


def test_a_run_has_the_names_that_the_documents_give(finished_run):
    names = {path.name for path in finished_run.folder.iterdir() if path.is_dir()}
    assert {"data", "teacher", "labels", "student", "baseline", "bundle", "bundle-baseline"} < names
    assert finished_run.places.baseline.name == "baseline"
    assert finished_run.bundle_baseline.name == "bundle-baseline"


@pytest.mark.slow
def test_the_names_of_earlier_versions_are_found(finished_run, tmp_path):
    folder = renamed_to_what_they_were(finished_run, tmp_path)
    run = runs.open_run(folder)
    data = runs.open_data(run)
    assert runs.train_baseline(run, data).record.identity == (
        load_model(finished_run.places.baseline, data).record.identity
    )
    assert not (folder / "baseline").exists()
    comparison = runs.evaluate(run, data)
    assert "student without distillation" in [row.name for row in comparison.rows]


def test_a_user_is_forgotten_in_bundles_of_both_names(finished_run, tmp_path):
    folder = renamed_to_what_they_were(finished_run, tmp_path)
    shutil.copytree(folder / "bundle-alone", folder / "bundle-baseline")
    done = runs.forget_user(runs.open_run(folder), "u1")
    assert "u1" not in load_dataset(Places(folder).data).info.user_ids
    for name in ("bundle", "bundle-alone", "bundle-baseline"):
        assert f"{folder / name}: history erased" in done
        assert not load(folder / name).knows_user("u1")
