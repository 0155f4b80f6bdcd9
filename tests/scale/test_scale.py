"""The same work on a Ray cluster of two nodes: equal results, and workers that die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch

from distilrec import runs
from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import load_dataset
from distilrec.data.preparation import prepare_dataset
from distilrec.data.splits import Split
from distilrec.errors import ClusterError, MissingExtraError, TeacherError, TrainingError
from distilrec.labels import extract
from distilrec.labels.extract import LabelConfig, extract_labels
from distilrec.labels.store import open_labels
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.transformer import TransformerConfig
from distilrec.report.comparison import STUDENT, Comparison
from distilrec.runs.config import read_config
from distilrec.scale.ray_workers import RayWorkers, start_patiently
from distilrec.stores.opening import open_store
from distilrec.stores.records import Since
from distilrec.teachers.external import function_teacher
from distilrec.training.options import RunOptions, TrainingConfig
from distilrec.training.trained import train_model
from distilrec.workers import InProcess
from tests import ROOT
from tests.cli.test_cli import TOML
from tests.serve.test_faults import Load
from tests.servers import Server, free_port, until
from tests.small_run import SCHEMA, Heard, tables, write_tables

pytestmark = [
    pytest.mark.ray,
    pytest.mark.redis,
    pytest.mark.server,
    # Ray warns of its own plans.
    pytest.mark.filterwarnings("ignore::Warning"),
]


@pytest.fixture(scope="module", autouse=True)
def _impatient():
    """Ray gives its workers what others leave of the CPU; on a busy machine that is nothing."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each, on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster()
    for options in ({"num_cpus": 1, "include_dashboard": False}, {"num_cpus": 1}):
        start_patiently(partial(made.add_node, **options), lambda: None)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    workers = RayWorkers(made.address)
    yield workers
    ray.shutdown()
    made.shutdown()


def test_a_slow_start_is_tried_again_and_other_faults_are_not():
    late = Exception("The current node timed out during startup. This could happen because …")
    answers, ended = [late, late, "started"], []

    def start():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert start_patiently(start, lambda: ended.append(1)) == "started"
    assert len(ended) == 2
    answers[:] = [late] * 9
    with pytest.raises(RuntimeError, match="timed out during startup"):
        start_patiently(start, lambda: None)
    assert len(answers) == 5
    answers[:] = [ValueError("no such address"), "started"]
    with pytest.raises(ValueError, match="no such address"):
        start_patiently(start, lambda: None)


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(extract, "_BATCH", 4)
    monkeypatch.setattr(extract, "_BATCHES_PER_SHARD", 2)


def network(small):
    config = TransformerConfig(dim=8, layers=1, heads=2, feed_forward=16, max_history=12)
    return train_model(config, small, TrainingConfig(epochs=1, batch_size=16), seed=0)


def same(one, two, small):
    rows = torch.from_numpy(small.training_rows())
    return all(
        torch.equal(a, b)
        for a, b in zip(vars(one.at(rows)).values(), vars(two.at(rows)).values(), strict=True)
    )


@pytest.mark.usefixtures("many_shards")
def test_labels_are_the_same_bit_for_bit(cluster, small, tmp_path):
    assert cluster.count == 2
    teacher, config = network(small), LabelConfig(top_k=5, samples=5, states=True)
    here = extract_labels(teacher, small, tmp_path / "here", config, seed=3)
    seen = []
    there = extract_labels(
        teacher,
        small,
        tmp_path / "there",
        config,
        seed=3,
        options=RunOptions(workers=cluster, progress=Heard(lambda task, *at: seen.append(at))),
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
        return np.sin(
            np.outer(1 + histories.users + np.diff(histories.offsets), np.arange(self.items))
        )


@pytest.mark.usefixtures("many_shards")
def test_workers_that_die_do_not_change_the_labels(cluster, small, tmp_path):
    config = LabelConfig(top_k=5, samples=5)
    immortal, mortal = (
        function_teacher(Mortal(tmp_path, small.info.warm_items, users), small, identity="sine")
        for users in ((), (3, 40))
    )
    whole = extract_labels(immortal, small, tmp_path / "here", config, seed=0)
    there = extract_labels(
        mortal, small, tmp_path / "there", config, seed=0, options=RunOptions(workers=cluster)
    )
    assert len(list(tmp_path.glob("died-*"))) == 2
    assert same(whole, there, small)


def test_an_error_of_a_worker_is_our_error(cluster, small, tmp_path):
    items = small.info.warm_items
    teacher = function_teacher(
        lambda histories: np.full((len(histories), items), np.nan), small, identity="nothing"
    )
    with pytest.raises(TeacherError, match="gave nan for user") as caught:
        extract_labels(
            teacher, small, tmp_path, LabelConfig(5, 5), seed=0, options=RunOptions(workers=cluster)
        )
    assert caught.value.fix


def in_a_process(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )


def test_a_cluster_that_is_not_there():
    done = in_a_process(
        "from distilrec.scale.ray_workers import RayWorkers, start_patiently\n"
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


@pytest.mark.parametrize("kind", ["leave-one-out", "global-time"])
def test_the_data_set_does_not_depend_on_who_prepares_it_and_in_how_many_parts(
    cluster, tmp_path, kind
):
    """With cold users, duplicates, a k-core, and parts that begin in the middle of everything."""
    made = tables()
    log = pl.concat(
        [
            made["log"],
            made["log"].head(50),
            made["log"].head(3).with_columns(user_id=pl.lit("late")),
        ]
    )
    log = log.with_columns(weight=1 / (1 + pl.int_range(log.height) % 7))
    log.write_parquet(tmp_path / "log.parquet")
    steps = []

    def prepared(**how):
        return prepare_dataset(
            tmp_path / "log.parquet", msgspec.structs.replace(SCHEMA, weight="weight"), users=made["users"],
            items=made["items"], split=Split(kind=kind), cleaning=Cleaning(min_user_events=4, min_item_events=12), **how,
        )  # fmt: skip

    whole = prepared()
    assert whole.info.cleaning_report.dropped["duplicate row"] >= 50
    assert whole.info.cleaning_report.dropped["user or item with too few events"] > 0
    in_parts = prepared(rows_per_part=61)
    there = prepared(
        rows_per_part=61,
        workers=cluster,
        scratch=tmp_path / "parts",
        on_step=lambda *step: steps.append(step),
    )
    assert in_parts.fingerprint() == there.fingerprint()
    assert not (tmp_path / "parts").exists()
    assert [what for what, done, total in steps if done == total] == ["clean", "split", "encode"]
    # The sums of the weights differ in the last bit.
    assert in_parts.info.item_ids == whole.info.item_ids
    assert in_parts.info.cleaning_report == whole.info.cleaning_report
    for one, two in zip(vars(in_parts).values(), vars(whole).values(), strict=True):
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, two)
    np.testing.assert_allclose(
        in_parts.item_features.weights, whole.item_features.weights, rtol=1e-6
    )


def trained(small, folder, die_in, on_epoch):
    """A training whose second process dies once after this epoch."""

    def after(epoch, total):
        on_epoch(epoch, total)
        marker = folder / "died"
        if epoch.epoch == die_in and torch.distributed.get_rank() == 1 and not marker.exists():
            marker.touch()
            os._exit(1)

    config = RecurrentConfig(dim=8, dropout=0.0, max_history=12)
    training = TrainingConfig(epochs=4, batch_size=7, learning_rate=1e-3)
    return train_model(
        config,
        small,
        training,
        seed=0,
        options=RunOptions(checkpoint=folder / "checkpoint", on_epoch=after),
    )


def test_two_processes_take_the_steps_of_one_and_one_of_them_may_die(cluster, small, tmp_path):
    for name in ("one", "two", "mortal"):
        (tmp_path / name).mkdir()
    epochs = []
    alone = InProcess().together(partial(trained, small, tmp_path / "one", 0), lambda *epoch: None)
    by_two = cluster.together(
        partial(trained, small, tmp_path / "two", 0), lambda epoch, total: epochs.append(epoch)
    )
    mortal = cluster.together(partial(trained, small, tmp_path / "mortal", 2), lambda *epoch: None)
    assert (tmp_path / "mortal" / "died").exists()
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert mortal.record.identity == by_two.record.identity
    for name, weights in alone.model.state_dict().items():
        torch.testing.assert_close(by_two.model.state_dict()[name], weights, rtol=1e-3, atol=1e-4)
    assert [epoch.loss for epoch in epochs] == pytest.approx(
        [epoch.loss for epoch in alone.record.curve], rel=1e-4
    )


def diverging(small, on_epoch):
    raise TrainingError("the loss is nan in epoch 1", fix="lower training.learning_rate", epoch=1)


def test_an_error_in_training_is_our_error_at_once(cluster, small):
    with pytest.raises(TrainingError, match="the loss is nan") as caught:
        cluster.together(partial(diverging, small), lambda *epoch: None)
    assert caught.value.context == {"epoch": 1}


def test_the_command_line_uses_the_workers_of_this_machine(tmp_path):
    """`distilrec run --ray local`, as a user types it: the data and the labels are those of a run without."""
    write_tables(tmp_path)
    (tmp_path / "shop.toml").write_text(TOML)
    here, small = runs.prepare(read_config(tmp_path / "shop.toml"), tmp_path / "here")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "distilrec.cli", "run", "--config", "shop.toml", "--run", "there", "--ray", "local"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there, same_data = runs.open_run(tmp_path / "there"), load_dataset(tmp_path / "there" / "data")
    assert same_data.fingerprint() == small.fingerprint()
    # The same teacher, and its labels again.
    shutil.copytree(there.folder / "teacher", here.folder / "teacher")
    (labels,) = runs.teacher_labels(here, small)
    assert same(labels, open_labels(there.folder / "labels", small), small)
    comparison = msgspec.json.decode(
        (there.folder / "comparison.json").read_bytes(), type=Comparison
    )
    assert comparison.row(STUDENT).quality["ndcg@10"].mean > 0


def replicas():
    """The process numbers of the service's replicas on this machine."""
    names = ((int(path.parent.name), path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    found = []
    for number, path in names:
        try:
            if path.read_bytes().startswith(b"ray::ServeReplica:distilrec"):
                found.append(number)
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.server
def test_a_replica_that_is_killed_loses_no_acknowledged_event(
    cluster, finished_run, redis_server, tmp_path
):
    cluster.close()
    server = Server(
        finished_run.bundle, redis_server.url, "--ray", cluster.address, "--workers", 2, log_folder=tmp_path,
        port=free_port(),
    )  # fmt: skip
    try:
        before = replicas()
        assert len(before) == 2
        with Load(server) as load:
            load.wait(100, 100)
            os.kill(before[0], signal.SIGKILL)
            until(
                lambda: before[0] not in (now := replicas()) and len(now) == 2,
                "the dead one is replaced",
            )
            load.wait(100, 100)
        assert len(set(replicas()) - set(before)) == 1
        asked = load.answers + len(load.acknowledged) + len(load.failed)
        assert load.acknowledged
        assert len(load.failed) <= max(8, 0.05 * asked), load.failed[
            :3
        ]  # what was under way in the dead one
        store = open_store(redis_server.url)
        stored = [
            e.event_id for r in store.read([Since(f"load-{n}") for n in range(4)]) for e in r.events
        ]
        store.close()
        assert set(load.acknowledged) <= set(stored)
        assert len(stored) == len(set(stored))
        # Every replica follows what another has stored.
        for n in range(8):
            server.event("shared", f"i{n}", event_id=f"shared-{n}")
            assert f"i{n}" not in server.items("shared", k=99)
    finally:
        assert server.stop() == 0, server.log.read_text()


def test_replicas_need_a_store_that_they_can_share(cluster, finished_run, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "distilrec.cli", "serve", "--bundle", finished_run.bundle, "--store",
         f"sqlite:///{tmp_path}/store.db", "--ray", cluster.address],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot share an SQLite store" in done.stderr
