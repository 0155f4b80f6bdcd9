"""Files are written whole, and what belongs together is replaced together: at every change of the disk a process may be killed."""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distilrec import runs
from distilrec.bundle.format import erase_user, read_bundle
from distilrec.cli import main
from distilrec.data.cleaning import Cleaning
from distilrec.data.dataset import PREPARED, load_dataset
from distilrec.errors import (
    DataError,
    DistilrecError,
    FolderHeldError,
    StorageError,
    TeacherError,
    TrainingError,
)
from distilrec.files import RecordKind, locked, write_whole
from distilrec.labels import extract
from distilrec.labels.store import open_labels
from distilrec.networks.recurrent import RecurrentConfig
from distilrec.report.comparison import Comparison
from distilrec.runs import candidates, stages
from distilrec.runs.config import RunConfig
from distilrec.runs.seen import models_that_saw
from distilrec.teachers.build import EnsembleConfig, MemberConfig, load_teacher, make_teacher
from distilrec.teachers.external import load_user_scores, save_user_scores, user_scores
from distilrec.teachers.linear import LinearConfig
from distilrec.training.options import TrainingConfig
from distilrec.training.trained import load_model
from tests import ROOT
from tests.killed import Killed, dying, killed, run_killed
from tests.small_run import Said, small_config, tables, write_tables

pytestmark = pytest.mark.slow

SOURCE = ROOT / "src" / "distilrec"


# --- one file ---


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    for number in range(1, 10):
        with killed(tmp_path, number) as changes:
            write_whole(path, b"the new content")
        assert path.read_bytes() in (b"old", b"the new content")
        if len(changes) < number:
            break
        write_whole(path, b"old")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert changes == ["fsync /file.new", "replace /file.new", "fsync "]
    assert path.read_bytes() == b"the new content"


def test_nothing_else_writes_files():
    """Whoever writes a file does it with `distilrec.files`; exceptions are named here, with the reason."""
    allowed = {
        "files.py": 2,  # the module itself
        "data/fetch.py": 1,  # into a temporary folder
        "data/lines.py": 1,  # into the scratch folder of the preparation
        "data/remote.py": 1,  # into the same
        "data/separated.py": 1,  # into the same
        "labels/store.py": 1,  # into the new file of `replacing`
        "teachers/adapters/recbole.py": 1,  # an export for another library
        "training/memory.py": 1,  # a switch of the kernel
    }
    writes = re.compile(
        r"write_text\(|write_bytes\(|save_file\(|\.open\(\"w|\.write_csv\((?!new)|write_parquet\((?!new)"
    )
    found = {
        str(path.relative_to(SOURCE)): len(writes.findall(path.read_text()))
        for path in SOURCE.rglob("*.py")
    }
    assert {name: count for name, count in found.items() if count} == allowed


def test_a_folder_is_held_by_one_process(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(StorageError, match="another process works in"),
        locked(tmp_path, wait=False),
    ):
        pass
    with locked(tmp_path, wait=False):
        pass


def test_two_commands_do_not_work_on_one_run(two_runs, tmp_path, capsys):
    run = shutil.copytree(two_runs[0] / "old", tmp_path / "run")
    with locked(run):
        for command in (["train"], ["export"], ["forget", "--user-id", "u1"]):
            with pytest.raises(SystemExit) as ended:
                main([*command, "--run", str(run)])
            assert ended.value.code == 75
            assert f"error [folder_held]: another process works in {run}" in capsys.readouterr().err
        config = runs.open_run(run).config
        for begin in (runs.prepare, runs.run_all):
            with pytest.raises(FolderHeldError, match="another process works in"):
                begin(config, run)
    main(["forget", "--user-id", "u1", "--run", str(run)])
    assert "history erased" in capsys.readouterr().out


# --- a record ---


class About(msgspec.Struct, frozen=True):
    name: str


KIND = RecordKind(
    "it.json",
    About,
    ("one", "two"),
    3,
    DataError,
    "thing",
    fix="make it",
    again="make {folder} again",
)


def write(folder: Path, name: str, value: int) -> None:
    KIND.write(
        folder,
        About(name),
        {part: {"x": np.full(4, value)} for part in ("one", "two")},
        made_from=name,
    )


def read(folder: Path) -> tuple[str, str, set[int]]:
    record = KIND.read(folder)
    return (
        record.about.name,
        record.made_from,
        {int(v) for part in ("one", "two") for v in record.arrays(part)["x"]},
    )


def test_a_record_is_replaced_at_one_moment(tmp_path):
    number, states = 0, []
    while True:
        number += 1
        write(tmp_path, "old", 1)
        with killed(tmp_path, number) as changes:
            write(tmp_path, "new", 2)
        states.append(read(tmp_path))
        if len(changes) < number:
            break
    assert number > 8
    old, new = ("old", "old", {1}), ("new", "new", {2})
    assert states == [old] * states.count(old) + [new] * states.count(new)
    assert states.count(old) > 5
    assert sorted(path.name[:4] for path in tmp_path.iterdir()) == ["it.j", "one-", "two-"]


def test_a_damaged_record_is_refused_by_the_name_of_the_file(tmp_path):
    write(tmp_path, "a", 1)
    write(tmp_path / "other", "b", 2)
    (one,), (other,) = tmp_path.glob("one-*"), (tmp_path / "other").glob("one-*")
    whole, record = one.read_bytes(), (tmp_path / "it.json").read_bytes()
    one.write_bytes(other.read_bytes())  # that of another record
    with pytest.raises(
        DataError,
        match=rf"{one.name} is not the file that it.json names.*\n.*make {tmp_path} again",
    ):
        KIND.read(tmp_path)
    one.write_bytes(whole[:-1])
    with pytest.raises(
        DataError, match=rf"{one.name} has {len(whole) - 1} bytes instead of {len(whole)}"
    ):
        KIND.read(tmp_path)
    one.unlink()
    with pytest.raises(DataError, match=rf"{one.name} is missing"):
        KIND.read(tmp_path)
    for content, said in (
        (b"{}", "it.json has no format number; this distilrec reads 3"),
        (
            b'{"format_version": 4}',
            "it.json has format 4; this distilrec reads 3\n.*upgrade distilrec",
        ),
        (b"{", "it.json cannot be read"),
        (record.replace(one.name.encode(), b"../../etc/passwd"), "it.json cannot be read"),
        (record.replace(b'"name": "a"', b'"title": "a"'), "it.json cannot be read"),
    ):
        (tmp_path / "it.json").write_bytes(content)
        assert KIND.made_from(tmp_path) is None
        with pytest.raises(DataError, match=said):
            KIND.read(tmp_path)


# --- prepared data ---


def reseal(folder: Path, change) -> None:
    """Writes the arrays anew with a change, and hashes that fit: as if another program had written them."""
    (path,) = folder.glob("dataset-*")
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    digest, record = (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        (folder / "dataset.json").read_text(),
    )
    part = msgspec.json.decode(record)["parts"]["dataset"]
    record = record.replace(part["sha256"], digest).replace(
        f'"bytes": {part["bytes"]}', f'"bytes": {path.stat().st_size}'
    )
    (folder / "dataset.json").write_text(record)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(offsets=a["offsets"][:-1]), "offsets is not int64 of length 61"),
        (lambda a: a.update(train_end=a["train_end"][1:]), "train_end is not int64 of length 60"),
        (lambda a: a.update(items=a["items"][:-3]), "lacks one value for each of"),
        (lambda a: a.update(times=a["times"][:-3]), "times lacks one value for each of"),
        (lambda a: a.update(items=a["items"] + 40), "items go beyond 42"),
        (lambda a: a.update(events=a["events"] + 9), "events go beyond 3"),
        (lambda a: a.update(offsets=a["offsets"] + 1), "offsets do not go from 0"),
        (lambda a: a.update(validation_end=a["train_end"], train_end=a["validation_end"]), "one after the other"),
        (lambda a: a.update(user_columns=a["user_columns"][1:], user_weights=a["user_weights"][1:]), "59 rows for 60 users"),
        (lambda a: a.update(item_weights=a["item_weights"][1:]), "item_columns and item_weights differ"),
        (lambda a: a.update(item_columns=a["item_columns"] + 10_000), "item_columns go beyond"),
        (lambda a: a.pop("events"), "events"),
        (lambda a: a.update(more=a["events"]), "more"),
    ],
)  # fmt: skip
def test_prepared_data_whose_parts_do_not_fit_are_refused(small, tmp_path, change, said):
    small.save(tmp_path)
    reseal(tmp_path, change)
    with pytest.raises(
        DataError, match=rf"dataset-\w+\.safetensors does not fit dataset\.json: .*{said}"
    ):
        load_dataset(tmp_path)


def test_files_of_another_data_set_are_refused(small, tmp_path):
    """Before, users had each other's rows."""
    small.save(tmp_path / "one")
    small.select_users(np.arange(1, 60)).save(tmp_path / "two")
    for part in ("dataset", "attributes"):
        (one,), (two,) = (tmp_path / "one").glob(f"{part}-*"), (tmp_path / "two").glob(f"{part}-*")
        if part == "dataset":
            shutil.copy(two, one)
            with pytest.raises(
                DataError, match=rf"{one.name} has \d+ bytes instead of|is not the file"
            ):
                load_dataset(tmp_path / "one")
    shutil.copy(tmp_path / "two" / "dataset.json", tmp_path / "one" / "dataset.json")
    with pytest.raises(DataError, match=r"dataset-\w+\.safetensors is missing"):
        load_dataset(tmp_path / "one")


# --- teachers ---


def test_scores_of_other_data_are_refused(small, tmp_path):
    """With as many users, those of other people were taken."""
    frame = tables()["log"].select("user_id", "item_id").unique().with_columns(score=1.0)
    save_user_scores(user_scores(frame, small), tmp_path)
    other = replace(
        small, info=msgspec.structs.replace(small.info, user_ids=small.info.user_ids[::-1])
    )
    with pytest.raises(TeacherError, match="are of another data set"):
        load_user_scores(tmp_path, other)
    (arrays,) = tmp_path.glob("scores-*")
    arrays.write_bytes(arrays.read_bytes()[:-4])
    with pytest.raises(TeacherError, match=rf"{arrays.name} has \d+ bytes instead of"):
        load_user_scores(tmp_path, small)


TINY = TrainingConfig(epochs=1, batch_size=32)


def test_an_ensemble_belongs_to_its_members(small, tmp_path):
    """A kill between a new member and the new weights once gave the old weights to the new member."""
    old = EnsembleConfig((MemberConfig(LinearConfig()), MemberConfig(LinearConfig(decay=0.5))))
    new = EnsembleConfig((MemberConfig(LinearConfig()), MemberConfig(LinearConfig(decay=0.8))))
    make_teacher(old, small, TINY, tmp_path / "old", seed=0)
    expected = make_teacher(new, small, TINY, tmp_path / "new", seed=0).identity
    found, number = set(), 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "old", folder)
        with killed(folder, number) as changes:
            make_teacher(new, small, TINY, folder, seed=0)
        try:
            found.add(load_teacher(new, folder, small).identity)
        except TrainingError as problem:
            found.add(re.sub(r".*/\d+", "", problem.message))
        assert make_teacher(new, small, TINY, folder, seed=0).identity == expected
        assert load_teacher(new, folder, small).identity == expected
        if len(changes) < number:
            break
    assert found == {
        expected,
        "/member-1 was trained with other settings than those of the run",
        "/ensemble.json holds the weights of other members",
    }


# --- every stage of a run ---


def tiny_config(folder: Path, dim: int, **more) -> RunConfig:
    config = small_config(folder)
    return msgspec.structs.replace(
        config,
        teacher=RecurrentConfig(dim=dim, max_history=16),
        teacher_training=TINY,
        student=RecurrentConfig(dim=dim, max_history=16),
        student_training=TINY,
        **more,
    )


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The tables; `old`, a finished run; `new`, what the same commands with other settings make of it, and of nothing."""
    folder = tmp_path_factory.mktemp("runs")
    write_tables(folder)
    old, new = tiny_config(folder, 4), tiny_config(folder, 8, cleaning=Cleaning(min_user_events=5))
    runs.run_all(old, folder / "old")
    runs.run_all(new, folder / "whole")
    return folder, new


def look(folder: Path) -> dict[str, object]:
    """Everything in a run that can be loaded: by name, what it is, or the class of the error that refuses it."""

    def seen(make):
        try:
            return make()
        except DistilrecError as problem:
            assert str(folder) in problem.message
            return type(problem).__name__

    def data():
        made = runs.open_data(runs.open_run(folder))
        return made.fingerprint(), made.info.user_ids, sorted(made.attributes.numbers)

    def bundle(name):
        made = read_bundle(folder / name)
        return (
            made.manifest.model_version,
            made.manifest.hashed(),
            tuple(made.history.users),
        )

    def of_data(make):
        return seen(lambda: make(load_dataset(folder / "data")))

    def labels(dataset):
        store = open_labels(folder / "labels", dataset)
        return store.manifest, len(store)

    return {
        "config": seen(lambda: runs.open_run(folder).config),
        "data": seen(data),
        "teacher": of_data(lambda dataset: load_model(folder / "teacher", dataset).record.identity),
        "labels": of_data(labels),
        "student": of_data(lambda dataset: load_model(folder / "student", dataset).record.identity),
        "baseline": of_data(
            lambda dataset: load_model(folder / "baseline", dataset).record.identity
        ),
        "bundle": seen(lambda: bundle("bundle")),
        "bundle-baseline": seen(lambda: bundle("bundle-baseline")),
    }


STAGES = {
    "train": runs.train_teacher,
    "distill": runs.distill_student,
    "baseline": runs.train_baseline,
    "export": runs.export,
    "evaluate": runs.evaluate,
}


def stage(name: str, folder: Path, config: RunConfig) -> None:
    if name == "prepare":
        runs.prepare(config, folder)
    else:
        run = runs.open_run(folder)
        STAGES[name](run, runs.open_data(run))


@pytest.mark.parametrize("name", ["prepare", *STAGES])
def test_a_stage_that_is_killed_at_any_write_is_done_again(two_runs, tmp_path, monkeypatch, name):
    """In between, everything is as before or as afterwards, or refused; then the same command gives the same result."""
    folder, config = two_runs
    start = tmp_path / "start"
    shutil.copytree(folder / "old", start)
    for earlier in ["prepare", *STAGES]:
        if earlier == name:
            break
        stage(earlier, start, config)
    if name == "distill":  # several shards of labels
        monkeypatch.setattr(extract, "_BATCH", 4)
        monkeypatch.setattr(extract, "_BATCHES_PER_SHARD", 6)
    if name == "evaluate":  # what it measures is the same each time, and takes long
        measured = msgspec.json.decode(
            (folder / "whole" / "comparison.json").read_bytes(), type=Comparison
        )
        monkeypatch.setattr(stages, "compare", lambda *arguments: measured)
        for latency in ("engine_latency", "torch_latency"):
            monkeypatch.setattr(candidates, latency, lambda *arguments: None)
    done = tmp_path / "done"
    shutil.copytree(start, done)
    stage(name, done, config)
    before, after = look(start), look(done)
    number, at = 0, tmp_path / "at"
    while True:
        number += 1
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(start, at)
        with killed(at, number) as changes:
            stage(name, at, config)
        for what, found in look(at).items():
            assert found in (before[what], after[what]) or isinstance(found, str), (
                changes[-1],
                what,
            )
        if len(changes) < number:
            break
        if (
            name == "evaluate" or number % 2
        ):  # half of them, for time's sake: each must be able to go on
            stage(name, at, config)
            assert look(at) == after, changes[number - 1]
    assert number > 8
    if name == "evaluate":
        assert after == look(folder / "whole")
    version = read_bundle(done / "bundle").manifest.model_version
    if name in ("export", "evaluate"):
        assert version in {one.model_version for one in models_that_saw(done, "u1")}


def holders(folder: Path, user: str) -> list[str]:
    """The files of a run that hold a user's id. Its ids are long, so that no number looks like one."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and user.encode() in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def long_ids(tmp_path_factory):
    """A finished run whose user ids are long enough to be looked for in files."""
    folder = tmp_path_factory.mktemp("long")
    for name, table in tables().items():
        if "user_id" in table.columns:
            table = table.with_columns(user_id="the-user-" + table["user_id"] + "-of-the-log")
        table.write_csv(folder / f"{name}.csv")
    runs.run_all(tiny_config(folder, 4), folder / "run")
    return folder / "run"


USER = "the-user-u7-of-the-log"


def test_a_user_is_forgotten_whole_wherever_it_is_killed(long_ids, tmp_path):
    done, others = tmp_path / "done", load_dataset(long_ids / "data").info.user_ids
    shutil.copytree(long_ids, done)
    assert "data/dataset.json" in holders(done, USER)
    runs.forget_user(runs.open_run(done), USER)
    assert holders(done, USER) == ["erased-users.txt"]
    after, number, at = look(done), 0, tmp_path / "at"
    while True:
        number += 1
        for again in ("forget", "look"):
            shutil.rmtree(at, ignore_errors=True)
            shutil.copytree(long_ids, at)
            with killed(at, number) as changes:
                runs.forget_user(runs.open_run(at), USER)
            loaded = load_dataset(at / "data")
            assert loaded.info.user_ids in (others, tuple(user for user in others if user != USER))
            for user in (others[0], others[-1]):  # nobody has the rows of somebody else
                place, was = loaded.info.user_ids.index(user), others.index(user)
                whole = load_dataset(long_ids / "data")
                rows, before = (
                    slice(*loaded.offsets[place : place + 2]),
                    slice(*whole.offsets[was : was + 2]),
                )
                assert np.array_equal(loaded.items[rows], whole.items[before])
            noted = (at / "unfinished-erasure.json").is_file()
            assert noted or len(holders(at, USER)) > 1 or holders(at, USER) == ["erased-users.txt"]
            if again == "forget":  # the same command, or any other
                runs.forget_user(runs.open_run(at), USER)
            elif noted:
                runs.open_data(runs.open_run(at))
            else:
                continue
            assert holders(at, USER) == ["erased-users.txt"], changes[-1]
            assert look(at) == after
        if len(changes) < number:
            break
    assert number > 15
    assert (at / "erased-users.txt").read_text() == f"{USER}\n"


def test_prepare_finishes_an_erasure(long_ids, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(long_ids, run)
    (run / "unfinished-erasure.json").write_text(f'["{USER}"]')  # killed right after it began
    shutil.copytree(run / "data", run / "data" / "parts")  # and what a killed preparation leaves
    runs.prepare(runs.open_run(run).config, run)
    assert holders(run, USER) == ["erased-users.txt"]
    assert not (run / "labels").exists() and not (run / "data" / "parts").exists()


def test_a_bundle_forgets_whole_wherever_it_is_killed(long_ids, tmp_path):
    number = 0
    while True:
        number += 1
        bundle = tmp_path / str(number)
        shutil.copytree(long_ids / "bundle", bundle)
        with killed(bundle, number) as changes:
            erase_user(bundle, USER)
        read_bundle(bundle)
        if len(changes) < number:
            break
        assert erase_user(bundle, USER) or not holders(bundle, USER)
        assert not holders(bundle, USER), changes[-1]
        assert not erase_user(bundle, USER)
    assert number > 6


def test_a_real_kill(long_ids, tmp_path):
    """SIGKILL of the command itself, at two of the places."""
    shutil.copytree(long_ids, tmp_path / "count")
    with dying(tmp_path / "count", 10_000, lambda: None) as changes:
        runs.forget_user(runs.open_run(tmp_path / "count"), USER)
    for number in (len(changes) // 2, len(changes) - 1):
        run = tmp_path / str(number)
        shutil.copytree(long_ids, run)
        forget = ["forget", "--run", str(run), "--user-id", USER]
        run_killed(number, run, *forget)
        assert len(holders(run, USER)) > 1
        main(forget)
        assert holders(run, USER) == ["erased-users.txt"]


def test_a_preparation_between_data_and_configuration_is_refused(two_runs, tmp_path):
    folder, config = two_runs
    run = tmp_path / "run"
    shutil.copytree(folder / "old", run)
    runs.prepare(config, run)
    shutil.copy(folder / "old" / "config.json", run / "config.json")
    with pytest.raises(
        DataError,
        match="prepared with other choices than those in config.json\n.*distilrec prepare",
    ):
        runs.open_data(runs.open_run(run))


def test_a_bundle_of_another_student_is_not_evaluated(two_runs, tmp_path):
    folder, _ = two_runs
    run = tmp_path / "run"
    shutil.copytree(folder / "whole", run)
    shutil.rmtree(run / "bundle")
    shutil.copytree(folder / "old" / "bundle", run / "bundle")
    opened = runs.open_run(run)
    with pytest.raises(
        DistilrecError, match="is not of the model in .*student\n.*distilrec export"
    ):
        runs.evaluate(opened, runs.open_data(opened))


def test_old_run_folders_are_refused(two_runs, tmp_path):
    """Those of 0.1.0 have no format numbers."""
    folder, config = two_runs
    run = tmp_path / "run"
    shutil.copytree(folder / "whole", run)
    dataset = load_dataset(run / "data")
    for path in ("data/dataset.json", "teacher/model.json"):
        content = msgspec.json.decode((run / path).read_bytes())
        (run / path).write_bytes(msgspec.json.encode(content["about"]))
    with pytest.raises(
        DataError, match=r"dataset\.json has no format number.*\n.*run `distilrec prepare` again"
    ):
        load_dataset(run / "data")
    with pytest.raises(
        TrainingError, match=r"model\.json has no format number.*\n.*train the model again"
    ):
        load_model(run / "teacher", dataset)
    runs.prepare(config, run)
    runs.train_teacher(runs.open_run(run), dataset)  # which does it
    assert look(run)["teacher"] == look(folder / "whole")["teacher"]
    assert PREPARED.made_from(run / "data")


def test_the_version_that_run_says_is_that_of_the_bundle(two_runs, tmp_path):
    said = Said()
    runs.run_all(two_runs[1], tmp_path / "run", said)
    version = read_bundle(tmp_path / "run" / "bundle").manifest.model_version
    versions = re.findall(r"model ([0-9a-f]{16})", "\n".join(said.lines))
    assert versions == [version]
    assert version in {one.model_version for one in models_that_saw(tmp_path / "run", "u1")}


def test_killed_is_no_exception():
    assert not issubclass(Killed, Exception)  # nothing may catch it
