"""Commands that train: data, teacher, labels, student, bundle, comparison."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from distilrec.cli.app import DEFAULT_RUN, Ray, RunFolder, app, held
from distilrec.cli.terminal import TerminalProgress, show_comparison, terminal_progress
from distilrec.errors import ConfigError

if TYPE_CHECKING:
    from distilrec.bundle.drec import MatrixPrecision
    from distilrec.data.dataset import Dataset
    from distilrec.progress import Progress
    from distilrec.report.drift import Drift
    from distilrec.report.gate import Check
    from distilrec.runs.config import RefreshConfig, RunConfig
    from distilrec.runs.folder import Run
    from distilrec.runs.trial import Trial
    from distilrec.workers import Workers

Device = Annotated[
    str,
    Parameter(
        name="--device",
        help="Where networks are trained and asked: auto, cpu, cuda, cuda:1 or mps. Without a "
        "choice CUDA where there is one, else the CPU.",
    ),
]

Precision = Annotated[
    str,
    Parameter(
        name="--precision",
        help="What matrix products of a training are computed in: auto, float32 or bf16. Without a "
        "choice bf16 on CUDA devices that have it, else float32.",
    ),
]

data_app = App(name="data", help="Public data sets.")
app.command(data_app)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Begin:
    """What a run is begun with: the options of `prepare` and `run`."""

    dataset: Annotated[
        str | None, Parameter(name="--dataset", help="A public data set, such as ml-100k.")
    ] = None
    config: Annotated[
        Path | None,
        Parameter(name="--config", help="TOML file that describes data and models."),
    ] = None
    run: RunFolder | None = None
    seed: Annotated[int | None, Parameter(name="--seed", help="Seed of everything random.")] = None
    ray: Ray = None


@data_app.command
def fetch(name: str) -> None:
    """Fetch a public data set (ml-100k, ml-1m) into the cache and print its folder.

    Parameters
    ----------
    name
        Which data set.

    """
    from distilrec.data.fetch import fetch_dataset

    print(fetch_dataset(name, lambda line: print(line, file=sys.stderr)))


@app.command
def prepare(*, begin: Begin = Begin()) -> None:
    """Read, clean, split and encode the data, and begin a run folder."""
    from distilrec import runs

    with begun_run(begin) as (chosen, folder, progress, workers):
        runs.prepare(chosen, folder, progress, workers)


@app.command
def train(
    *,
    run: RunFolder = DEFAULT_RUN,
    ray: Ray = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Train the teacher of a prepared run."""
    from distilrec import runs

    with opened_run(run, ray, device, precision) as (opened, data):
        runs.train_teacher(opened, data)


@app.command
def distill(
    *,
    run: RunFolder = DEFAULT_RUN,
    without_comparison: Annotated[
        bool, Parameter(help="Do not train the same student without distillation for comparison.")
    ] = False,
    ray: Ray = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Extract the teacher's labels and train the student on them."""
    from distilrec import runs

    with opened_run(run, ray, device, precision) as (opened, data):
        if without_comparison:
            runs.warn_of_little_headroom(opened, data)
            runs.distill_student(opened, data)
        else:
            runs.train_students(opened, data)


@app.command
def export(
    *,
    run: RunFolder = DEFAULT_RUN,
    web: Annotated[
        bool,
        Parameter(
            help="Also write student.drec beside the bundle: one small file without data about "
            "users, which web pages and devices load."
        ),
    ] = False,
    onnx: Annotated[
        bool,
        Parameter(
            help="Also write the folder onnx beside the bundle: two graphs without data about "
            "users, which ONNX Runtime and other servers run."
        ),
    ] = False,
    bundle: Annotated[
        Path | None,
        Parameter(
            help="With --web or --onnx: write only these files, of this bundle. Needs no run."
        ),
    ] = None,
    precision: Annotated[
        Literal["half", "float32"],
        Parameter(help="With --web: of the matrices; item vectors have 8 bits in any case."),
    ] = "half",
) -> None:
    """Write the bundle of the student."""
    if bundle is not None:
        if not web and not onnx:
            raise ConfigError(
                "--bundle is only for the web file and ONNX files",
                fix="add --web or --onnx, or leave --bundle out",
                parameter="bundle",
            )
        _export_files(bundle, precision, web=web, onnx=onnx)
        return
    from distilrec import runs

    with opened_run(run) as (opened, data):
        runs.export(opened, data)
        _export_files(opened.bundle, precision, web=web, onnx=onnx)


def _export_files(bundle: Path, precision: MatrixPrecision, *, web: bool, onnx: bool) -> None:
    if web:
        _export_web(bundle, precision)
    if onnx:
        _export_onnx(bundle)


def _export_web(bundle: Path, precision: MatrixPrecision) -> None:
    from distilrec.bundle.format import read_bundle
    from distilrec.engine.web import write_drec

    file = bundle.parent / "student.drec"
    rounding = write_drec(read_bundle(bundle), file, precision)
    print(
        f"{file}: {file.stat().st_size:,} bytes; of the ten best items of the bundle "
        f"{rounding.overlap:.1%} are among its ten best, and no score is further away than "
        f"{rounding.largest:.2g} ({rounding.questions} made-up users)"
    )


def _export_onnx(bundle: Path) -> None:
    from distilrec.bundle.format import read_bundle
    from distilrec.engine.onnx_files import write_onnx

    folder = bundle.parent / "onnx"
    report = write_onnx(read_bundle(bundle), folder)
    print(
        f"{folder}: {report.bytes:,} bytes; onnxruntime gives the golden answers, and no score is "
        f"further away than {report.largest:.2g}"
    )


@app.command
def evaluate(*, run: RunFolder = DEFAULT_RUN) -> None:
    """Compare teacher, student and baselines on the test part, and write report.html."""
    from distilrec import runs

    with opened_run(run) as (opened, data):
        comparison = runs.evaluate(opened, data)
    show_comparison(comparison)


@app.command
def gate(
    *,
    run: RunFolder = DEFAULT_RUN,
    thresholds: Annotated[Path, Parameter(help="TOML file of thresholds.")] = Path("gate.toml"),
) -> None:
    """Measure the exported bundle against thresholds; exit code 1 where one is missed."""
    from distilrec import runs
    from distilrec.report.gate import read_thresholds

    wanted = read_thresholds(thresholds)
    with opened_run(run) as (opened, data):
        checks = runs.gate(opened, data, wanted)
    _print_checks(checks)


@app.command
def refresh(  # noqa: PLR0913 - options of a command
    *,
    log: Annotated[
        Path | None, Parameter(help="New rows, in a file with the columns of the log of the run.")
    ] = None,
    events_from: Annotated[
        str | None,
        Parameter(
            help="In place of --log: address of a service whose stored events are the new rows; "
            "its key is in the environment variable DISTILREC_KEY."
        ),
    ] = None,
    from_source: Annotated[
        bool,
        Parameter(
            help="In place of --log: ask the source that the log of the run came from (a query, a "
            "table, a folder or a pattern) for the rows since then.",
        ),
    ] = False,
    run: RunFolder = DEFAULT_RUN,
    config: Annotated[
        Path | None,
        Parameter(
            help="TOML file whose [refresh] section counts from now on; all else stays as it was "
            "when the run was trained."
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        Parameter(help="TOML file of thresholds that the new bundle must meet as well."),
    ] = None,
    metrics: Annotated[
        Path | None,
        Parameter(
            help="File for what came of the refresh, in the text format of Prometheus, such as "
            "the textfile collector of its node_exporter reads (NAME.prom)."
        ),
    ] = None,
    against_full: Annotated[
        bool,
        Parameter(
            help="Train a student from the beginning on the same data as well, and say how far the "
            "new bundle is from it."
        ),
    ] = False,
    service: Annotated[
        str | None,
        Parameter(
            help="Address of a service that then answers with the bundle that counts; its key is "
            "in the environment variable DISTILREC_KEY."
        ),
    ] = None,
    min_agreement: Annotated[
        float,
        Parameter(
            help="The service switches only where its model and the new one agree on this share of "
            "the items of its latest answers; exit code 1 otherwise."
        ),
    ] = 0.0,
    trial_share: Annotated[
        float | None,
        Parameter(
            help="Answer only this share of the users of the service with the new bundle at first, "
            "and take it back where that brings less or answers fail; exit code 1 then."
        ),
    ] = None,
    trial_minutes: Annotated[float, Parameter(help="How long the trial lasts.")] = 60.0,
    trial_metric: Annotated[
        Literal["clicks", "conversions", "value"],
        Parameter(help="By what the two models are compared in the trial."),
    ] = "clicks",
    ray: Ray = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Train teacher and student of a finished run further on new rows, measure the new bundle
    beside the one before, and let it count from then on where it passes the gate; exit code 1
    where it does not. After an interruption, the same command resumes.
    """
    from distilrec import runs
    from distilrec.report.gate import read_thresholds
    from distilrec.runs.refresh_metrics import write_refresh_metrics
    from distilrec.runs.refreshing import last_refresh
    from distilrec.serve.client import KEY_VARIABLE

    if [log is not None, events_from is not None, from_source].count(True) != 1:
        raise ConfigError(
            "a refresh needs new rows, from one place",
            fix="give --log FILE, or --events-from with the address of a service, or --from-source",
            parameter="log",
        )
    key = os.environ.get(KEY_VARIABLE)
    rows = log if events_from is None else runs.ServiceLog(events_from, key)
    wanted = None if thresholds is None else read_thresholds(thresholds)
    _check_ends(metrics, service, min_agreement)
    trial = None
    if trial_share is not None:
        trial = runs.Trial(trial_share, trial_minutes, trial_metric)
        if service is None or min_agreement:
            raise ConfigError(
                "a trial is at a service, and in place of a switch by agreement",
                fix="give --trial-share with --service and without --min-agreement",
                parameter="trial-share",
            )
    with terminal_progress() as progress:
        done = runs.refresh(
            run,
            rows,
            thresholds=wanted,
            against_full=against_full,
            settings=None if config is None else _refresh_settings(config, run, progress),
            progress=progress,
            workers=_workers(ray, run),
            device=device,
            precision=precision,
        )
    if metrics is not None:
        write_refresh_metrics(done or last_refresh(run), metrics, ended=time.time())
    if done is None:
        print("refresh: no new rows, nothing to do")
    else:
        _print_checks(done.checks)
        print(f"bundle: {done.bundle}")
    if service is not None:
        _let_answer(service, run, min_agreement, trial)


def _refresh_settings(path: Path, folder: Path, progress: Progress) -> RefreshConfig:
    """Return the [refresh] section of a TOML file, and say which other sections are not those that
    the run was trained with.
    """
    from distilrec import runs
    from distilrec.runs.refreshing import changed_settings

    config = runs.read_config(path)
    if changed := changed_settings(runs.open_run(folder), config):
        progress.say(
            f"{path}: a refresh uses its [refresh] section only; what it says of "
            f"{', '.join(changed)} differs from what the run was trained with, and counts in a "
            "whole training only (distilrec run)"
        )
    return config.refresh


def _check_ends(metrics: Path | None, service: str | None, min_agreement: float) -> None:
    """Raise ConfigError for what would only fail after the training."""
    from distilrec.serve.client import service_address

    if metrics is not None and not metrics.absolute().parent.is_dir():
        raise ConfigError(
            f"there is no folder for {metrics}",
            fix="make it, or correct the path of --metrics",
            parameter="metrics",
        )
    if service is not None:
        service_address(service, "service")
    if not 0.0 <= min_agreement <= 1.0:
        raise ConfigError(
            f"--min-agreement is a share, and {min_agreement:g} is none",
            fix="give a number from 0 to 1",
            parameter="min-agreement",
        )


def _let_answer(service: str, run: Path, min_agreement: float, trial: Trial | None) -> None:
    """Let a service answer with the bundle of a run that counts; exit code 1 where it declines."""
    from distilrec import runs
    from distilrec.runs.generations import Generations
    from distilrec.runs.places import Places
    from distilrec.runs.refreshing import take_back
    from distilrec.serve.client import KEY_VARIABLE

    generations = Generations(run)
    number = generations.current()
    bundle = Places(generations.folder(number)).bundle
    key = os.environ.get(KEY_VARIABLE)
    if trial is None:
        said = runs.let_answer(service, bundle, key=key, min_agreement=min_agreement)
    else:
        said = runs.try_out(service, bundle, trial, key=key)
        if not said.switched:
            take_back(run, number)
    print(said.line)
    if not said.switched:
        raise SystemExit(1)


@app.command
def drift(
    *,
    log: Annotated[
        Path, Parameter(help="Events of today, in a file with the columns of the training log.")
    ],
    run: RunFolder = DEFAULT_RUN,
    stability: Annotated[float, Parameter(help="Limit of each population stability index.")] = 0.25,
    unknown: Annotated[
        float, Parameter(help="Limit of the share of events with unknown users, items or types.")
    ] = 0.2,
) -> None:
    """Compare events of today with the log that the student was trained on; exit code 1 where
    something has moved.
    """
    from distilrec import runs

    with opened_run(run) as (opened, data):
        indices = runs.check_drift(opened, data, log, stability=stability, unknown=unknown)
    _print_checks(indices)


@app.command
def tune(
    *,
    run: RunFolder = DEFAULT_RUN,
    only: Annotated[
        Literal["student", "baseline"] | None,
        Parameter(
            help="Search for one of them: the distilled student, or the one without distillation."
        ),
    ] = None,
    trials: Annotated[int, Parameter(help="Maximum number of trainings of each.")] = 20,
    minutes: Annotated[
        float, Parameter(help="Minutes of each after which no new training begins.")
    ] = 60.0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Search for the hyper-parameters of the student, and with the same budget for those of the
    student without distillation, on validation data; write tuned.toml.
    """
    from distilrec import runs

    with opened_run(run, device=device, precision=precision) as (opened, data):
        tuned = runs.tune_students(opened, data, only=only, trials=trials, minutes=minutes)
    print(tuned.toml(), end="")


@app.command(name="run")
def run_command(
    *, begin: Begin = Begin(), device: Device = "auto", precision: Precision = "auto"
) -> None:
    """Run the whole line: prepare, train, distill, export, evaluate. After an interruption, the
    same command resumes.
    """
    from distilrec import runs

    with begun_run(begin) as (chosen, folder, progress, workers):
        comparison = runs.run_all(
            chosen, folder, progress, workers=workers, device=device, precision=precision
        )
    show_comparison(comparison)


def _print_checks(checks: Sequence[Check | Drift]) -> None:
    """Print what was measured; end with code 1 where something is not as it should be."""
    for check in checks:
        print(check)
    if not all(check.passed for check in checks):
        sys.exit(1)


def _config(begin: Begin) -> RunConfig:
    import msgspec

    from distilrec.runs.config import DataConfig, RunConfig, read_config

    if (begin.dataset is None) == (begin.config is None):
        raise ConfigError(
            "say which data: either --dataset or --config",
            fix="for example `--dataset ml-100k`",
            parameter="dataset",
        )
    chosen = (
        RunConfig(DataConfig(dataset=begin.dataset))
        if begin.config is None
        else read_config(begin.config)
    )
    return chosen if begin.seed is None else msgspec.structs.replace(chosen, seed=begin.seed)


def _folder(run: Path | None, config: RunConfig) -> Path:
    from distilrec.runs.source import name_of

    return Path("runs") / name_of(config.data) if run is None else run


@contextmanager
def begun_run(
    begin: Begin,
) -> Iterator[tuple[RunConfig, Path, TerminalProgress, Workers | None]]:
    """Yield what a run is begun with."""
    chosen = _config(begin)
    folder = _folder(begin.run, chosen)
    with terminal_progress() as progress:
        yield chosen, folder, progress, _workers(begin.ray, folder)


@contextmanager
def opened_run(
    folder: Path, ray: str | None = None, device: str = "auto", precision: str = "auto"
) -> Iterator[tuple[Run, Dataset]]:
    """Yield a run and its data; its folder is held until the block ends."""
    from distilrec import runs

    with terminal_progress() as progress, held(folder):
        run = runs.open_run(folder, progress, _workers(ray, folder), device, precision)
        yield run, runs.open_data(run)


def _workers(ray: str | None, run: Path) -> Workers | None:
    if ray is None:
        return None
    from distilrec.scale.ray_workers import RayWorkers

    return RayWorkers(ray, shared=run.absolute())
