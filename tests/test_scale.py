"""The same work on a Ray cluster of two nodes: equal results, and workers that die."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from distilrec import pipeline
from distilrec.errors import ClusterError, MissingExtraError, TeacherError
from distilrec.knowledge import extract
from distilrec.knowledge.extract import LabelConfig, extract_labels
from distilrec.models import train_model
from distilrec.scale.ray_workers import RayWorkers
from distilrec.teachers.external import function_teacher
from distilrec.teachers.transformer import TransformerConfig
from distilrec.training.trainer import TrainingConfig
from tests.small_run import small_config, write_tables

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # Ray's own


@pytest.fixture(scope="module", autouse=True)
def _impatient():
    """Ray gives its workers what others leave of the CPU; on a busy machine that is nothing."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each, on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    workers = RayWorkers(made.address)
    yield workers
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(extract, "_BATCH", 4)
    monkeypatch.setattr(extract, "_BATCHES_PER_SHARD", 2)


def network(small):
    config = TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=12)
    return train_model(config, small, TrainingConfig(epochs=1, batch_size=16), seed=0)


def same(one, two, small):
    rows = torch.from_numpy(small.training_rows())
    return all(torch.equal(a, b) for a, b in zip(vars(one.at(rows)).values(), vars(two.at(rows)).values(), strict=True))


@pytest.mark.usefixtures("many_shards")
def test_labels_are_the_same_bit_for_bit(cluster, small, tmp_path):
    assert cluster.count == 2
    teacher, config = network(small), LabelConfig(top_k=5, samples=5, states=True)
    here = extract_labels(teacher, small, tmp_path / "here", config, seed=3)
    seen = []
    there = extract_labels(
        teacher, small, tmp_path / "there", config, seed=3, workers=cluster, on_shard=lambda *at: seen.append(at)
    )
    assert here.manifest == there.manifest
    assert here.manifest.shards > 3
    assert seen == [(n, here.manifest.shards) for n in range(here.manifest.shards + 1)]
    assert same(here, there, small)
    files = sorted(path.name for path in (tmp_path / "here").glob("*.parquet"))
    assert files == sorted(path.name for path in (tmp_path / "there").glob("*.parquet"))


class Mortal:
    """A teacher that takes its process with it, once for each of these users."""

    def __init__(self, folder, items, users):
        self.folder, self.items, self.users = folder, items, users

    def __call__(self, histories):
        for user in set(self.users) & set(histories.users.tolist()):
            marker = self.folder / f"died-{user}"
            if not marker.exists():
                marker.touch()
                os._exit(1)
        return np.sin(np.outer(1 + histories.users + np.diff(histories.offsets), np.arange(self.items)))


@pytest.mark.usefixtures("many_shards")
def test_workers_that_die_do_not_change_the_labels(cluster, small, tmp_path):
    config = LabelConfig(top_k=5, samples=5)
    immortal, mortal = (
        function_teacher(Mortal(tmp_path, small.info.warm_items, users), small, identity="sine")
        for users in ((), (3, 40))
    )
    whole = extract_labels(immortal, small, tmp_path / "here", config, seed=0)
    there = extract_labels(mortal, small, tmp_path / "there", config, seed=0, workers=cluster)
    assert len(list(tmp_path.glob("died-*"))) == 2
    assert same(whole, there, small)


def test_an_error_of_a_worker_is_our_error(cluster, small, tmp_path):
    items = small.info.warm_items
    teacher = function_teacher(lambda histories: np.full((len(histories), items), np.nan), small, identity="nothing")
    with pytest.raises(TeacherError, match="gave nan for user") as caught:
        extract_labels(teacher, small, tmp_path, LabelConfig(5, 5), seed=0, workers=cluster)
    assert caught.value.fix


def in_a_process(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


def test_a_cluster_that_is_not_there():
    done = in_a_process(
        "from distilrec.scale.ray_workers import RayWorkers\n"
        "from distilrec.errors import ClusterError\n"
        "try: RayWorkers('127.0.0.1:1')\n"
        "except ClusterError as problem: print(problem)"
    )
    assert "127.0.0.1:1' cannot be reached" in done.stdout, done.stderr
    assert "how to fix" in done.stdout
    assert ClusterError.code == "cluster_failed"


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="ray"):
        RayWorkers()


def test_the_command_line_uses_the_workers_of_this_machine(tmp_path):
    """`distilrec distill --ray local`, as a user types it, gives the student that it gives without."""
    write_tables(tmp_path)
    config = small_config(tmp_path)
    students = []
    for name, options in (("here", []), ("there", ["--ray", "local"])):
        run, small = pipeline.prepare(config, tmp_path / name)
        pipeline.train_teacher(run, small)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "distilrec.cli", "distill", "--run", tmp_path / name,
             "--without-comparison", *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        students.append((tmp_path / name / "student" / "model.safetensors").read_bytes())
    assert students[0] == students[1]
