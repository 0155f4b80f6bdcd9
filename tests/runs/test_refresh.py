"""A refresh: new rows, warm start, the bundle before, the gate, what counts, from every door."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from distilrec import load, runs
from distilrec.cli.app import main
from distilrec.data.dataset import Dataset
from distilrec.data.splits import Split
from distilrec.errors import (
    ColumnMissingError,
    ColumnTypeError,
    ConfigError,
    DataError,
    DistilrecError,
    LabelStoreError,
    ServiceError,
    StorageError,
)
from distilrec.files import locked
from distilrec.labels.store import open_labels
from distilrec.measure.ranking import questions, rank
from distilrec.networks.build import build_model
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.networks.sequence import TorchScorer
from distilrec.networks.transformer import TransformerConfig
from distilrec.report.comparison import BundleScorer
from distilrec.report.earlier import EarlierBundle
from distilrec.report.gate import Check, Thresholds
from distilrec.runs.config import RefreshConfig
from distilrec.runs.generations import Generations
from distilrec.runs.refreshing import changed_users, refresh, rows_trained_from
from distilrec.runs.seen import models_that_saw
from distilrec.runs.served import let_answer
from distilrec.teachers import build
from distilrec.teachers.build import (
    EnsembleConfig,
    MemberConfig,
    known_baselines,
    load_teacher,
    make_teacher,
)
from distilrec.teachers.ease import EaseConfig, carried_ease
from distilrec.teachers.linear import LinearConfig, carried_linear
from distilrec.teachers.teacher import ModelTeacher
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import Earlier, save_model, train_model
from distilrec.training.warm import carried_over, places_in
from tests.killed import killed, run_killed
from tests.servers import served
from tests.small_run import NETWORKS, SCHEMA, Said, dataset, in_visits, small_config, tables


def split_log(folder: Path) -> pl.DataFrame:
    """Write the tables of the small run, the log without the newest rows, which are returned; they
    bring users and items of their own.
    """
    made = tables()
    log = made["log"].sort("timestamp", maintain_order=True)
    late = log.tail(log.height // 8)
    late = pl.concat(
        [
            late,
            pl.DataFrame(
                [
                    (f"new{user}", item, 1_600_100_000 + 60 * n, "view")
                    for user in range(4)
                    for n, item in enumerate(["i1", "i2", "fresh", "i3", "i4"])
                ],
                schema=log.schema,
                orient="row",
            ),
        ]
    )
    made["log"] = log.head(log.height - log.height // 8)
    for name, table in made.items():
        table.write_csv(folder / f"{name}.csv")
    return late


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("finished")
    late = split_log(folder)
    runs.run_all(small_config(folder), folder / "run")
    return folder, late


@pytest.fixture
def run(finished, tmp_path) -> tuple[Path, pl.DataFrame]:
    """A finished run of its own, and rows that came later."""
    subprocess.run(["cp", "-a", str(finished[0]) + "/.", str(tmp_path)], check=True)
    config = json.loads((tmp_path / "run/config.json").read_text())
    for name, table in (("interactions", "log"), ("users", "users"), ("items", "items")):
        config["data"][name] = str(tmp_path / f"{table}.csv")
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    return tmp_path / "run", finished[1]


# A bundle of so few users may be worse by chance: no test depends on the gate but those of the gate
LOOSE = Thresholds(size={"bytes": 1e9})


def test_new_rows_make_a_generation_that_knows_their_users_and_items(run):
    folder, late = run
    before = load(folder / "bundle")
    late.write_parquet(folder / "late.parquet")
    said = Said()
    done = refresh(folder, folder / "late.parquet", thresholds=LOOSE, progress=said)
    assert (done.generation, done.rows, done.known) == (1, late.height, 0)
    assert said.lines[-1] == done.line()
    assert Generations(folder).current() == (1 if done.passed else 0)
    after = load(Path(done.bundle))
    assert after.manifest.model_version == done.model_version != before.manifest.model_version
    assert after.manifest.metrics["ndcg@10"] > 0
    generation = runs.open_run(folder / "generations/1")
    data = runs.open_data(generation)
    assert {"new0", "new3"} <= set(data.info.user_ids)
    assert "fresh" in data.info.item_ids
    assert len(data.items) == pl.read_csv(folder.parent / "log.csv").height + late.height
    assert (folder / "generations/1/report.html").is_file()


def test_rows_that_the_log_has_are_counted_and_left_out(run):
    folder, late = run
    first, again = late.head(60), late.tail(80)  # some rows are in both
    assert refresh(folder, first, thresholds=LOOSE) is not None
    Generations(folder).switch(1)  # whatever the gate says by chance
    said = Said()
    done = refresh(folder, again, thresholds=LOOSE, progress=said)
    assert (done.generation, done.known, done.rows) == (2, 60 + 80 - late.height, late.height - 60)
    Generations(folder).switch(2)
    said = Said()
    assert refresh(folder, late, progress=said) is None
    assert f"{late.height:,} rows left out: the log has them" in said.lines
    assert [path.name for path in sorted((folder / "generations/2/log").iterdir())] == [
        "000000.parquet",
        "000001.parquet",
        "000002.parquet",
    ]


def metrics_of(path: Path) -> dict[str, float]:
    """Return the metrics of a refresh by their names."""
    return {
        sample.name.removeprefix("distilrec_refresh_"): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_a_bundle_that_fails_the_gate_changes_nothing(run, capsys):
    folder, late = run
    late.write_csv(folder / "late.csv")
    (folder / "gate.toml").write_text('[quality]\n"ndcg@10" = 0.999\n')
    command = ["refresh", "--run", str(folder), "--log", str(folder / "late.csv")]
    command += ["--metrics", str(folder / "refresh.prom")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--thresholds", str(folder / "gate.toml")])
    assert ended.value.code == 1
    output = capsys.readouterr()
    assert "FAILED  quality ndcg@10" in output.out
    assert "FAILED the gate, nothing was changed" in output.err
    assert not (folder / "generations/current").exists()
    assert Generations(folder).current() == 0
    metrics = metrics_of(folder / "refresh.prom")
    assert metrics["passed"] == 0 and metrics["rows"] == late.height
    assert metrics["gain_ndcg_low"] <= metrics["gain_ndcg"] <= metrics["gain_ndcg_high"]
    assert 0 <= time.time() - metrics["finished_timestamp_seconds"] < 60


def test_the_gate_knows_the_bundle_before(run):
    folder, late = run
    wanted = Thresholds(refresh={"ndcg@10": -1.0})
    done = refresh(folder, late, thresholds=wanted, against_full=True)
    assert done.full.interval.low <= done.full.interval.mean <= done.full.interval.high
    assert done.full_seconds > 0 and "against a full training" in done.line()
    assert not (folder / "generations/1/full").exists()
    check = next(check for check in done.checks if check.what == "refresh ndcg@10")
    assert check.passed and check.measured == done.gain.interval.low
    upper = next(check for check in done.checks if "upper end" in check.what)
    assert upper.passed == (done.gain.interval.high >= 0)


def test_a_passed_generation_counts_and_is_an_ordinary_run(run, capsys):
    folder, late = run
    late.write_parquet(folder / "late.parquet")
    try:
        main(["refresh", "--run", str(folder), "--log", str(folder / "late.parquet")])
    except SystemExit as ended:  # worse than before by chance: let it count
        assert ended.code == 1
        Generations(folder).switch(1)
    current = folder / "generations/current"
    assert load(current / "bundle").recommend("new0")
    opened = runs.open_run(current)
    assert runs.gate(opened, runs.open_data(opened), Thresholds(quality={"ndcg@10": 0.0}))
    command = ["refresh", "--run", str(folder), "--log", str(folder / "late.parquet")]
    main([*command, "--metrics", str(folder / "refresh.prom")])
    assert "no new rows" in capsys.readouterr().out
    metrics = metrics_of(folder / "refresh.prom")
    assert metrics["generation"] == 1 and metrics["rows"] == late.height
    assert metrics["finished_timestamp_seconds"] < metrics["ended_timestamp_seconds"]
    assert 0 <= time.time() - metrics["ended_timestamp_seconds"] < 60


def test_metrics_without_any_new_rows_say_when_they_were_looked_for(run):
    folder, _ = run
    command = ["refresh", "--run", str(folder), "--log", str(folder.parent / "log.csv")]
    main([*command, "--metrics", str(folder / "refresh.prom")])
    assert list(metrics_of(folder / "refresh.prom")) == ["ended_timestamp_seconds"]


def test_the_refresh_section_of_a_file_counts_from_now_on(run, capsys):
    folder, late = run
    late.write_parquet(folder / "late.parquet")
    config = runs.open_run(folder).config
    (folder / "shop.toml").write_text(
        f"""
        [data]
        interactions = "{config.data.interactions}"
        [refresh]
        epochs = 3
        keep = 2
        """
    )
    command = ["refresh", "--run", str(folder), "--log", str(folder / "late.parquet")]
    with suppress(SystemExit):  # whether it passes is chance
        main([*command, "--config", str(folder / "shop.toml")])
    said = capsys.readouterr().err
    assert "uses its [refresh] section only; what it says of data, " in said and "student" in said
    assert re.search(r"student: recurrent, .*best epoch \d of 3,", said)
    made = runs.open_run(folder / "generations/1").config
    assert (made.refresh.epochs, made.refresh.keep) == (3, 2)
    assert made.student == config.student != runs.read_config(folder / "shop.toml").student


def bad(change, error, match):
    return pytest.param(change, error, match, id=match)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        bad(lambda late: late.drop("event_type"), ColumnMissingError, "no column 'event_type'"),
        bad(
            lambda late: late.with_columns(pl.from_epoch("timestamp")),
            ColumnTypeError,
            "column 'timestamp' is of another type",
        ),
        bad(
            lambda late: late.with_columns(timestamp=pl.lit("soon")),
            ColumnTypeError,
            r"row 1 of .*late.parquet: column 'timestamp' holds 'soon'",
        ),
        bad(
            lambda late: late.with_columns(pl.col("timestamp") * 1000),
            ColumnTypeError,
            "in row 1, seconds and '.*' in row 1 of .*late.parquet, milliseconds",
        ),
    ],
)
def test_new_rows_that_do_not_fit_the_log_are_refused(run, change, error, match):
    folder, late = run
    change(late).write_parquet(folder / "late.parquet")
    with pytest.raises(error, match=match) as raised:
        refresh(folder, folder / "late.parquet")
    assert str(folder / "late.parquet") in str(raised.value)
    assert Generations(folder).current() == 0


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_same_command_goes_on(run, capsys):
    """A limit on the size of files stands for a full disk: each next one is met by a later stage."""
    folder, late = run
    late.write_csv(folder / "late.csv")
    command = ["refresh", "--run", str(folder), "--log", str(folder / "late.csv")]
    there = resource.getrlimit(resource.RLIMIT_FSIZE)
    stages = []
    for size in (100, 3_000, 9_000, 12_000, 16_000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, there[1]))
        try:
            with pytest.raises(SystemExit) as ended:
                main(command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, there)
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "error [storage_failed]" in said, said
        assert Generations(folder).current() == 0
        assert not list((folder / "generations").rglob("*.new"))
        stages.append(said.splitlines()[-2])
    assert "new-rows" in stages[0] and "checkpoints" in stages[-1], stages
    assert refresh(folder, folder / "late.csv", thresholds=LOOSE) is not None


@pytest.mark.slow
def test_a_damaged_generation_says_how_the_one_before_counts_again(run):
    folder, late = run
    assert refresh(folder, late.head(60)) is not None
    Generations(folder).switch(1)
    for name in ("config.json", "log/000000.parquet", "bundle/weights.safetensors"):
        path = folder / "generations/1" / name
        whole = path.read_bytes()
        path.unlink()  # the log is linked to from other folders
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DistilrecError) as raised:
            refresh(folder, late)
        assert f"ln -sfn .. {folder}/generations/current" in raised.value.fix
        assert not (folder / "generations/2").exists()
        path.write_bytes(whole)
    path.write_bytes(b"")
    subprocess.run(["ln", "-sfn", "..", str(folder / "generations/current")], check=True)
    done = refresh(folder, late)
    assert (done.generation, done.rows) == (1, late.height)


def test_a_copy_in_place_of_the_link_is_refused(tmp_path):
    (tmp_path / "generations/current").mkdir(parents=True)
    with pytest.raises(StorageError, match="is a copy of a generation"):
        Generations(tmp_path).current()


def test_a_log_that_has_changed_since_the_run_is_refused(run):
    folder, late = run
    log = pl.read_csv(folder.parent / "log.csv")
    pl.concat([log, late]).write_csv(folder.parent / "log.csv")
    with pytest.raises(DataError, match="when the run was prepared"):
        refresh(folder, late)


@pytest.mark.parametrize(
    ("section", "content"), [("privacy", {}), ("data", {"pseudonym_key": "KEY"})]
)
def test_runs_that_cannot_be_refreshed_say_why(run, section, content):
    folder, late = run
    config = json.loads((folder / "config.json").read_text())
    config[section] = {**(config[section] or {}), **content}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="cannot be refreshed"):
        refresh(folder, late)


def test_erased_users_stay_out_and_leave_every_generation(run):
    folder, late = run
    user = late["user_id"][0]
    opened = runs.open_run(folder)
    runs.forget_user(opened, user)
    assert refresh(folder, late, thresholds=LOOSE).erased == (late["user_id"] == user).sum()
    lines = runs.forget_user(opened, "new0")  # whom only the generation knows
    assert any("log: 5 rows erased" in line for line in lines)
    generation = folder / "generations/1"
    users = set(pl.read_parquet(generation / "log/*.parquet")["user_id"])
    assert not users & {user, "new0"}
    assert not {user, "new0"} & set(runs.open_data(runs.open_run(generation)).info.user_ids)
    Generations(folder).switch(1)
    said = Said()
    assert refresh(folder, late, progress=said) is None
    assert (
        f"{(late['user_id'].is_in([user, 'new0'])).sum():,} rows left out: their users were erased"
        in said.lines
    )


def grown() -> tuple[Dataset, Dataset]:
    """Data, and the same with more users, items, and values of features."""
    from distilrec.data.preparation import prepare_dataset

    made = tables()
    users = made["users"].with_columns(
        pl.when(pl.col("user_id") == "u3").then(pl.lit("at")).otherwise("country").alias("country")
    )
    late = pl.DataFrame(
        [("u3", f"x{n}", 1_600_200_000 + n, "share") for n in range(9)],
        schema=made["log"].schema,
        orient="row",
    )
    log = pl.concat([made["log"], late])
    return dataset(), prepare_dataset(
        log, SCHEMA, users=users, items=made["items"], name="small", split=Split()
    )


@pytest.mark.parametrize("order", ["time", "ties", "none"])
def test_what_is_trained_are_the_new_rows_and_all_of_a_drawn_share_of_the_users(order):
    was, now = grown()
    now = replace(now, info=msgspec.structs.replace(now.info, order=order))
    counts = dict(zip(was.info.user_ids, was.train_end - was.offsets[:-1], strict=True))
    every = (now.train_end - now.offsets[:-1]).tolist()
    added = [n - counts.get(user, 0) for user, n in zip(now.info.user_ids, every, strict=True)]
    assert max(added) > 0

    def trained(replay: float) -> list[int]:
        settings = RefreshConfig(replay=replay)
        return (now.train_end - rows_trained_from(was, now, settings, seed=0)).tolist()

    changed = [n if n >= 0 and order != "none" else of for n, of in zip(added, every, strict=True)]
    expected = [of if n else 0 for n, of in zip(added, changed, strict=True)]
    assert trained(0.0) == expected
    drawn = [n for n, few in zip(trained(0.3), expected, strict=True) if n != few]
    assert 5 < len(drawn) < 30  # of 60 users
    assert all(n in two for n, *two in zip(trained(0.3), every, expected, strict=True))
    # All rows of a user who has fewer than before; and of all users where no user has other rows
    none = RefreshConfig(replay=0.0)
    place = was.info.user_ids.index("u3")
    assert rows_trained_from(now, was, none, seed=0)[place] == was.offsets[place]
    assert (rows_trained_from(was, was, none, seed=0) == was.offsets[:-1]).all()


@pytest.mark.parametrize("config", [c for c in NETWORKS if type(c).__name__ != "SoftTreeConfig"])
def test_weights_are_taken_over_by_the_names_of_what_they_are_of(config):
    was, now = grown()
    old, fresh = build_model(config, was, 1), build_model(config, now, 2)
    weights = {name: tensor.numpy() for name, tensor in old.state_dict().items()}
    carried = carried_over(weights, fresh, was.info, now.info)
    fresh.load_state_dict(carried)
    places = {item: place for place, item in enumerate(was.info.item_ids[: was.info.warm_items])}
    for place, item in enumerate(now.info.item_ids[: now.info.warm_items]):
        row = carried["items.embedding"][place].numpy()
        expected = weights["items.embedding"][places[item]] if item in places else 0.0
        assert (row == expected).all()
    columns = was.info.user_encoder.column_names()
    for place, name in enumerate(now.info.user_encoder.column_names()):
        earlier = columns.index(name if name in columns else "country=unknown")
        row = carried["user_features.table"][place].numpy()
        assert (row == weights["user_features.table"][earlier]).all()
    assert "share" in now.info.event_types and "share" not in was.info.event_types
    assert np.isfinite(carried["items.bias"].numpy()).all()


def logs_of_several_kinds() -> dict[str, Dataset]:
    """The same events as logs of which the defaults of a network make something else."""
    visits = in_visits(dataset())
    rows = np.arange(len(visits.items))
    return {
        "visits": visits,
        "one event a visit": replace(visits, times=1.5e9 + 7200.0 * rows),
        "one day of dates": replace(visits, times=np.full(len(rows), 1.5e9)),
        "no repeats": replace(visits, info=msgspec.structs.replace(visits.info, repeats=False)),
    }


@pytest.mark.parametrize("after", ["visits", "one event a visit", "no repeats"])
@pytest.mark.parametrize(
    "before", ["visits", "one event a visit", "one day of dates", "no repeats"]
)
@pytest.mark.parametrize(
    "config",
    [
        RecurrentConfig(dim=8),
        RecurrentConfig(dim=8, neighbours=5, time=True),
        TransformerConfig(dim=8, layers=1, time=True, time_bias=True),
    ],
)
def test_weights_are_taken_over_where_the_log_makes_other_defaults(config, before, after):
    logs = logs_of_several_kinds()
    was, now = logs[before], logs[after]
    torch.manual_seed(0)
    old, fresh = build_model(config, was, 1), build_model(config, now, 2)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter += torch.rand_like(parameter)
    weights = {name: tensor.numpy() for name, tensor in old.state_dict().items()}
    begun = {name: tensor.numpy().copy() for name, tensor in fresh.state_dict().items()}
    fresh.load_state_dict(carried_over(weights, fresh, was.info, now.info))
    for name, parameter in fresh.named_parameters():
        known = name if name in weights else name.replace("earlier_", "")
        if known not in weights:
            assert (parameter.detach().numpy() == begun[name]).all(), name
            continue
        columns = [
            slice(min(sizes)) for sizes in zip(weights[known].shape, parameter.shape, strict=True)
        ]
        assert (parameter.detach().numpy()[*columns] == weights[known][*columns]).all(), name


@pytest.mark.slow
def test_a_student_that_is_carried_to_the_same_data_answers_as_before(tmp_path):
    log = in_visits(dataset())
    config = RecurrentConfig(dim=8, max_history=12, neighbours=5, time=True)
    trained = train_model(config, log, TrainingConfig(epochs=1, batch_size=16), seed=0)
    save_model(trained, tmp_path)
    assert trained.model.neighbours.values.any()
    carried = Earlier(tmp_path, log.info, log.train_end, "key").carried(log)
    histories = log.histories(np.arange(20), log.train_end[:20])
    np.testing.assert_allclose(
        *(TorchScorer(of.model).scores(histories) for of in (carried, trained)), 1e-5, 1e-5
    )


@pytest.mark.parametrize("dense_items", [0, 1000])
def test_what_is_not_fitted_again_stays_as_it_was_by_the_ids_of_items(dense_items, tmp_path):
    was, now = grown()
    sizes = {"dense_items": dense_items, "neighbours": 9}
    members = (LinearConfig(**sizes), EaseConfig(**sizes))
    config = EnsembleConfig(tuple(MemberConfig(member) for member in members))
    training = TrainingConfig()
    before = make_teacher(config, was, training, tmp_path / "before", seed=0)
    kept = Earlier(tmp_path / "before", was.info, now.offsets[:-1], "key", refit=False)
    after = make_teacher(config, now, training, tmp_path / "after", seed=0, earlier=kept)
    assert after.weights == before.weights
    at = places_in(was.info.item_ids[: was.info.warm_items], now.info.item_ids)
    at = at[: now.info.warm_items]
    there = at >= 0
    assert there.any() and not there.all()
    for old, new in zip(before.members, after.members, strict=True):
        assert (
            new.weights[np.ix_(there, there)] == old.weights[np.ix_(at[there], at[there])]
        ).all()
        assert not new.weights[~there].any() and not new.weights[:, ~there].any()
    assert load_teacher(config, tmp_path / "after", now).identity == after.identity
    fitted = replace(kept, refit=True)
    again = make_teacher(config, now, training, tmp_path / "after", seed=0, earlier=fitted)
    assert again.identity != after.identity
    assert again.weights == before.weights
    assert again.members[1].ridge == before.members[1].ridge
    assert again.members[0].weights[~there].any()


def test_members_that_are_not_asked_stay_as_they_were(tmp_path):
    was, now = grown()
    network = RecurrentConfig(dim=8, max_history=12)
    models = (network, network, EaseConfig(), LinearConfig())
    config = EnsembleConfig(tuple(MemberConfig(model, seed=n) for n, model in enumerate(models)))
    training = TrainingConfig(epochs=1, batch_size=16)
    before = make_teacher(config, was, training, tmp_path / "before", seed=0)
    weights = (0.0, 1.0, 0.0, 1.0)  # what validation would have found
    pooling = msgspec.structs.replace(before.pooling, weights=weights)
    build._ENSEMBLE.write(tmp_path / "before", pooling)
    earlier = Earlier(tmp_path / "before", was.info, now.offsets[:-1], "key")
    after = make_teacher(config, now, training, tmp_path / "after", seed=0, earlier=earlier)
    assert after.weights == weights
    for n, model in enumerate(models):
        member = after.members[n]
        if model is network:
            started = earlier.member(n, 1.0).carried(now).model.state_dict()
            trained = member.trained.model.state_dict()
            same = all(torch.equal(started[name], trained[name]) for name in started)
            record, old = member.trained.record, before.members[n].trained.record
            assert (record.curve == old.curve) == (weights[n] == 0)
            if weights[n]:  # trained, and no better than before
                assert same == (record.best_epoch == 0)
                continue
        else:
            kept = {EaseConfig: carried_ease, LinearConfig: carried_linear}[type(model)]
            same = np.array_equal(member.weights, kept(earlier.member(n, 1.0), now).weights)
        assert same == (weights[n] == 0)
    # EASE of the days before is no baseline of today's report.
    assert known_baselines(before) and not known_baselines(after)
    assert not known_baselines(load_teacher(config, tmp_path / "after", now))


def test_an_earlier_bundle_on_its_own_data_is_the_bundle(finished):
    folder = finished[0] / "run"
    data = runs.open_data(runs.open_run(folder))
    asked = questions(data, "test")
    same, own = EarlierBundle(folder / "bundle", data), BundleScorer(folder / "bundle", data)
    assert np.array_equal(same.scores(asked.histories), own.scores(asked.histories))


def test_an_earlier_bundle_ranks_items_that_it_does_not_know_last(finished):
    folder, now = finished[0] / "run", grown()[1]
    ranking = rank(EarlierBundle(folder / "bundle", now), questions(now, "test"))
    new = [now.info.item_ids.index(f"x{n}") for n in range(3)]
    assert not np.isin(ranking.top, new).any()


def test_a_tree_is_trained_as_a_whole(finished, tmp_path):
    from distilrec.networks.soft_tree import SoftTreeConfig

    late = split_log(tmp_path)
    config = msgspec.structs.replace(
        small_config(tmp_path), student=SoftTreeConfig(depth=2, inputs=5, max_history=12)
    )
    runs.run_all(config, tmp_path / "run")
    said = Said()
    refresh(tmp_path / "run", late, progress=said)
    assert any("trained as a whole" in line for line in said.lines)


def contents(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}


def copy_of(folder: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(folder), str(target)], check=True)
    return target


@pytest.mark.slow
def test_a_refresh_that_is_killed_ends_with_the_same_bundle(run, tmp_path):
    folder, late = run
    whole = copy_of(folder, tmp_path / "whole")
    with killed(whole, 10**9) as changes:
        done = refresh(whole, late)
    expected = contents(Path(done.bundle))
    rng = np.random.default_rng(0)
    for number in sorted(rng.choice(np.arange(1, len(changes)), 4, replace=False)):
        again = copy_of(folder, tmp_path / f"killed-{number}")
        with killed(again, int(number)):
            refresh(again, late)
        assert Generations(again).current() == 0, "what counts was switched before the end"
        resumed = refresh(again, late)
        assert contents(Path(resumed.bundle)) == expected, f"killed at {changes[number - 1]}"
        assert Generations(again).current() == Generations(whole).current()
        assert not (again / "generations/new-rows").exists()


def test_the_last_change_is_the_switch(run):
    folder, late = run
    with killed(folder, 10**9) as changes:
        done = refresh(folder, late)
    if not done.passed:
        Generations(folder).switch(1)
    else:
        assert changes[-2:] == [
            "replace /generations/current.new",
            "fsync /generations",
        ]


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(run):
    folder, late = run
    late.write_parquet(folder.parent / "late.parquet")
    command = ["refresh", "--run", str(folder), "--log", str(folder.parent / "late.parquet")]
    run_killed(20, folder, *command)
    assert Generations(folder).current() == 0
    again = subprocess.run([sys.executable, "-m", "distilrec.cli", *command], check=False)
    assert again.returncode in {0, 1}
    assert Generations(folder).current() == (1 if again.returncode == 0 else 0)


def loads(folder: Path) -> str:
    """The version of the bundle that counts, after all its hashes and example answers were checked."""
    current = folder / "generations/current"
    counts = current.resolve() if current.is_symlink() else folder
    return load(counts / "bundle").model_version


@pytest.mark.slow
def test_a_refresh_that_is_killed_at_any_moment_is_finished_by_the_next(run, tmp_path):
    """DISTILREC_KILLS=20 kills twenty times."""
    folder, late = run
    late.write_parquet(tmp_path / "late.parquet")

    def start(copy: Path) -> subprocess.Popen[bytes]:
        command = ["refresh", "--run", str(copy), "--log", str(tmp_path / "late.parquet")]
        process = subprocess.Popen(
            [sys.executable, "-m", "distilrec.cli", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (copy / "generations").is_dir():
            time.sleep(0.01)
        return process

    whole = copy_of(folder, tmp_path / "whole")
    process, began = start(whole), time.monotonic()
    assert process.wait() in {0, 1}
    work = time.monotonic() - began
    counts = Generations(whole).current()
    expected = contents(whole / "generations/1/bundle")
    versions = {loads(folder), load(whole / "generations/1/bundle").model_version}
    ends = []
    for number, moment in enumerate(
        np.random.default_rng(0).random(int(os.environ.get("DISTILREC_KILLS", "2")))
    ):
        again = copy_of(folder, tmp_path / f"again-{number}")
        process, began = start(again), time.monotonic()
        while time.monotonic() - began < moment * work:
            assert loads(again) in versions
        process.kill()
        ends.append(process.wait())
        assert loads(again) in versions
        process = start(again)
        while process.poll() is None:
            assert loads(again) in versions
        assert process.returncode == 1 - counts
        assert contents(again / "generations/1/bundle") == expected
        assert Generations(again).current() == counts
        shutil.rmtree(again)
    assert -signal.SIGKILL in ends


@pytest.fixture(scope="module")
def four(finished, tmp_path_factory) -> Path:
    """A run with four generations, of which the third counts."""
    folder = tmp_path_factory.mktemp("four")
    copied = copy_of(finished[0] / "run", folder / "run")
    assert refresh(copied, finished[1].head(60), thresholds=LOOSE) is not None
    for number in (2, 3, 4):
        copy_of(copied / "generations/1", copied / f"generations/{number}")
        record = next((copied / f"generations/{number}/seen").iterdir())
        record.rename(record.with_name(f"version-{number}.safetensors"))
    Generations(copied).switch(3)
    return copied


def test_the_latest_generations_and_the_records_of_all_stay(four, tmp_path):
    folder = copy_of(four, tmp_path / "run")
    generations = Generations(folder)
    saw = len(models_that_saw(folder, "u1"))
    assert generations.remove_old(0) == [] and generations.remove_old(3) == []
    assert generations.remove_old(1) == [1]  # the one before the one that counts stays
    assert [path.name for path in generations.folders()] == ["2", "3", "4"]
    assert len(models_that_saw(folder, "u1")) == saw
    assert loads(folder) == loads(four)


@pytest.mark.slow
def test_a_removal_that_is_killed_is_finished_by_the_next(four, tmp_path):
    whole = copy_of(four, tmp_path / "whole")
    with killed(whole, 10**9) as changes:
        Generations(whole).remove_old(2)
    for number in np.random.default_rng(0).choice(np.arange(1, len(changes)), 4, replace=False):
        again = copy_of(four, tmp_path / f"killed-{number}")
        with killed(again, int(number)):
            Generations(again).remove_old(2)
        assert loads(again) == loads(four)
        runs.forget_user(runs.open_run(again), "u1")  # goes through all generations
        Generations(again).remove_old(2)
        assert sorted(path.name for path in (again / "generations").iterdir()) == [
            "2", "3", "4", "current",
        ]  # fmt: skip
        assert {path.name for path in (again / "seen").iterdir()} == {
            path.name for path in (whole / "seen").iterdir()
        }


@pytest.mark.slow
def test_a_refresh_removes_old_generations_after_the_switch(four, finished, tmp_path):
    folder = copy_of(four, tmp_path / "run")
    config = json.loads((folder / "generations/3/config.json").read_text())
    config["refresh"]["keep"] = 2
    (folder / "generations/3/config.json").write_text(json.dumps(config))
    said = Said()
    done = refresh(folder, finished[1], progress=said)
    kept = ["3", "4"] if done.passed else ["2", "3", "4"]
    assert [path.name for path in Generations(folder).folders()] == kept
    removed = "1, 2" if done.passed else "1"
    assert f"old generations removed: {removed}" in said.lines


@pytest.mark.slow
def test_the_student_of_the_last_time_teaches_the_windows_of_replayed_users(run):
    folder, late = run
    config = json.loads((folder / "config.json").read_text())
    config["refresh"] |= {"earlier_weight": 0.4, "replay": 0.9}
    (folder / "config.json").write_text(json.dumps(config))
    late = late.filter(pl.col("user_id").str.starts_with("new"))
    refresh(folder, late, thresholds=LOOSE)
    made = runs.open_run(folder / "generations/1")
    data = runs.open_data(made)
    labels, teacher = open_labels(made.places.labels, data), runs.open_teacher(made, data)
    was = runs.open_data(runs.open_run(folder))
    earlier = Earlier(folder / "student", was.info, data.offsets[:-1], "").carried(data)
    changed = changed_users(was, data)
    kinds = set()
    for row in data.target_rows():
        user = int(data.user_rows()[row])
        if row - data.offsets[user] > 8:  # the teacher sees at least this many events of each
            continue
        try:
            stored = labels.at(torch.tensor([row]))
        except LabelStoreError:  # of a user who is neither changed nor drawn
            continue
        history = data.histories(np.array([user]), np.array([row]))
        z, e = (of.scores(history)[0] for of in (teacher, ModelTeacher(earlier)))
        expected = torch.from_numpy(z if changed[user] else 0.6 * z + 0.4 * e)
        logits = expected[stored.top_items[0]]  # the others were seen before
        torch.testing.assert_close(logits - logits[0], stored.top_logits[0], atol=0.01, rtol=0.0)
        kinds.add(bool(changed[user]))
    assert kinds == {True, False}


def test_two_at_once_are_refused(run, capsys):
    folder, late = run
    late.write_csv(folder / "late.csv")
    with locked(folder), pytest.raises(SystemExit) as ended:
        main(["refresh", "--run", str(folder), "--log", str(folder / "late.csv")])
    assert ended.value.code == 75
    assert "another process works in" in capsys.readouterr().err


@pytest.mark.server
def test_a_service_answers_with_the_bundle_that_counts(run, capsys, monkeypatch, tmp_path):
    folder, late = run
    late.write_csv(folder.parent / "late.csv")
    monkeypatch.setattr(
        "distilrec.runs.refreshing.Check",
        lambda name, value, limit, at_least: Check(name, value, -1.0, at_least),
    )
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "distilrec.cli",
            "key",
            "--name",
            "n",
            "--scopes",
            "recommend,admin",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    keys = tmp_path / "keys.toml"
    keys.write_text(made.stdout)
    options = ("--keys", keys, "--bundle-root", folder)
    with served(folder / "bundle", *options, store=str(tmp_path / "store.db")) as service:
        command = ["refresh", "--run", str(folder), "--log", str(folder.parent / "late.csv")]
        command += ["--service", service.url]
        assert main_code(command) == 2  # the bundle counts, and the service wants a key
        said = capsys.readouterr().err
        assert "answers 401" in said and "DISTILREC_KEY" in said
        assert Generations(folder).current() == 1

        monkeypatch.setenv("DISTILREC_KEY", made.stderr.split()[-1])
        version = load(folder / "generations/1/bundle").model_version
        assert main_code(command) == 0  # no new rows, and the service is told all the same
        assert f"service: answers with {version}, was " in capsys.readouterr().out
        service.client.headers["x-api-key"] = made.stderr.split()[-1]
        assert service.client.get("/v1/model").json()["model_version"] == version
        assert main_code(command) == 0
        assert f"service: answers with {version} already" in capsys.readouterr().out

        # Models that differ too much: the service keeps the one that it has
        for _ in range(20):
            service.client.post("/v1/recommend", json={"user_id": "u1"})
        declined = let_answer(
            service.url, folder / "bundle", key=made.stderr.split()[-1], min_agreement=1.0
        )
        assert not declined.switched and "did not switch" in declined.line
    with pytest.raises(ServiceError, match="gives no answer of a distilrec service"):
        let_answer(service.url, folder / "bundle")
    with pytest.raises(ConfigError, match="is no address"):
        let_answer("localhost:8000", folder / "bundle")


def main_code(command: list[str]) -> int | str | None:
    """The exit code of a command in this process."""
    try:
        main(command)
    except SystemExit as ended:
        return ended.code
    return 0
