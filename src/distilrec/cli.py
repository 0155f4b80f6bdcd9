"""The command line: thin, every stage is one function of `distilrec.runs`."""

from __future__ import annotations

import io
import json as json_text
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from distilrec._version import __version__
from distilrec.errors import (
    ConfigError,
    DistilrecError,
    InvalidIdError,
    StorageError,
    UnknownUserError,
    missing_extra,
)
from distilrec.files import locked
from distilrec.ids import as_id

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from distilrec.data.dataset import Dataset as PreparedDataset
    from distilrec.report.comparison import Comparison
    from distilrec.runs.config import RunConfig
    from distilrec.runs.folder import Run
    from distilrec.workers import Workers

_DEFAULT_RUN = Path("runs/ml-100k")
_EXTRAS = {
    **dict.fromkeys(("torch", "polars", "jinja2", "matplotlib", "markupsafe"), "train"),
    "optuna": "tune",
    "opacus": "privacy",
    "dataframely": "checks",
}  # which extra brings a package

app = App(
    name="distilrec",
    version=__version__,
    help="Distil any recommender into a student that answers in microseconds on one CPU core, "
    "with proof.\n\n"
    "The main job in one command: `distilrec run --dataset ml-100k`. Your own data: `distilrec "
    "run --config my.toml`.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
data_app = App(name="data", help="Public data sets.")
app.command(data_app)

RunFolder = Annotated[Path, Parameter(name="--run", help="Folder of the run.")]
Dataset = Annotated[
    str | None, Parameter(name="--dataset", help="A public data set, such as ml-100k.")
]
Config = Annotated[
    Path | None, Parameter(name="--config", help="TOML file that describes data and models.")
]
Ray = Annotated[
    str | None,
    Parameter(
        name="--ray",
        help="Spread the work over a Ray cluster: its address, auto, or local for this machine "
        "alone.",
    ),
]
Seed = Annotated[int | None, Parameter(name="--seed", help="Seed of everything random.")]
Bundle = Annotated[
    Path | None, Parameter(name="--bundle", help="Bundle folder; runs/ml-100k/bundle by default.")
]
StoreAddress = Annotated[
    str,
    Parameter(
        name="--store",
        env_var="DISTILREC_STORE",
        help="Where events are kept: sqlite:///FILE or redis://HOST:PORT/NUMBER.",
    ),
]
StorePassword = Annotated[
    Path | None,
    Parameter(
        name="--store-password-file", help="File that holds the password of the Redis server."
    ),
]
StorePrefix = Annotated[str, Parameter(name="--store-prefix", help="Prefix of every key in Redis.")]
Host = Annotated[str, Parameter(name="--host", help="Address to listen on.")]
Port = Annotated[int, Parameter(name="--port", help="Port to listen on.")]
KeyFile = Annotated[
    Path | None,
    Parameter(name="--keys", help="TOML file of API keys; `distilrec key` makes entries."),
]


@data_app.command
def fetch(name: str) -> None:
    """Fetch a public data set (ml-100k, ml-1m) into the cache and print its folder.

    Parameters
    ----------
    name
        Which data set.

    """
    from distilrec.data.fetch import fetch as fetch_dataset

    print(fetch_dataset(name, lambda line: print(line, file=sys.stderr)))


@app.command
def prepare(
    *,
    dataset: Dataset = None,
    config: Config = None,
    run: RunFolder | None = None,
    seed: Seed = None,
    ray: Ray = None,
) -> None:
    """Read, clean, split and encode the data; begins a run folder."""
    from distilrec import runs

    with _begun(dataset, config, run, seed, ray) as (chosen, folder, progress, workers):
        runs.prepare(chosen, folder, progress, workers)


@app.command
def train(*, run: RunFolder = _DEFAULT_RUN, ray: Ray = None) -> None:
    """Train the teacher of a prepared run."""
    from distilrec import runs

    with _opened(run, ray) as (opened, data):
        runs.train_teacher(opened, data)


@app.command
def distill(
    *,
    run: RunFolder = _DEFAULT_RUN,
    without_comparison: Annotated[
        bool, Parameter(help="Do not train the same student without distillation for comparison.")
    ] = False,
    ray: Ray = None,
) -> None:
    """Extract the teacher's labels and train the student on them."""
    from distilrec import runs

    with _opened(run, ray) as (opened, data):
        runs.distil_student(opened, data)
        if not without_comparison:
            runs.train_alone(opened, data)


@app.command
def export(*, run: RunFolder = _DEFAULT_RUN) -> None:
    """Write the bundle of the student."""
    from distilrec import runs

    with _opened(run) as (opened, data):
        runs.export(opened, data)


@app.command
def evaluate(*, run: RunFolder = _DEFAULT_RUN) -> None:
    """Compare teacher, student and baselines on the test part; write report.html."""
    from distilrec import runs

    with _opened(run) as (opened, data):
        comparison = runs.evaluate(opened, data)
    _show(comparison)


@app.command
def gate(
    *,
    run: RunFolder = _DEFAULT_RUN,
    thresholds: Annotated[Path, Parameter(help="TOML file of thresholds.")] = Path("gate.toml"),
) -> None:
    """Measure the exported bundle against thresholds; exit code 1 where one is missed."""
    from distilrec import runs
    from distilrec.report.gate import read_thresholds

    wanted = read_thresholds(thresholds)
    with _opened(run) as (opened, data):
        checks = runs.gate(opened, data, wanted)
    for each in checks:
        print(each)
    if not all(each.passed for each in checks):
        sys.exit(1)


@app.command
def drift(
    *,
    log: Annotated[
        Path, Parameter(help="Events of today, in a file with the columns of the training log.")
    ],
    run: RunFolder = _DEFAULT_RUN,
    stability: Annotated[float, Parameter(help="Limit of each population stability index.")] = 0.25,
    unknown: Annotated[
        float, Parameter(help="Limit of the share of events with unknown users, items or types.")
    ] = 0.2,
) -> None:
    """Compare events of today with the log that the student was trained on; exit code 1 where
    something has moved.
    """
    from distilrec import runs

    with _opened(run) as (opened, data):
        found = runs.check_drift(opened, data, log, stability=stability, unknown=unknown)
    for each in found:
        print(each)
    if not all(each.passed for each in found):
        sys.exit(1)


@app.command
def tune(
    *,
    run: RunFolder = _DEFAULT_RUN,
    trials: Annotated[int, Parameter(help="At most so many students are trained.")] = 20,
    minutes: Annotated[float, Parameter(help="No new one is begun after so many minutes.")] = 60.0,
) -> None:
    """Search for the student's hyper-parameters on the teacher's labels and validation data; writes
    tuned.toml.
    """
    from distilrec import runs

    with _opened(run) as (opened, data):
        chosen = runs.tune_student(opened, data, trials=trials, minutes=minutes)
    print(chosen.toml(), end="")


@app.command(name="run")
def run_command(
    *,
    dataset: Dataset = None,
    config: Config = None,
    run: RunFolder | None = None,
    seed: Seed = None,
    ray: Ray = None,
) -> None:
    """The whole line: prepare, train, distill, export, evaluate. Run again after an interruption:
    it resumes.
    """
    from distilrec import runs

    with _begun(dataset, config, run, seed, ray) as (chosen, folder, progress, workers):
        comparison = runs.run_all(chosen, folder, progress, workers=workers)
    _show(comparison)


@app.command
def recommend(
    *,
    user_id: Annotated[
        str, Parameter(name=["--user_id", "--user-id"], help="Who. An unknown user gets the prior.")
    ],
    item_ids: Annotated[
        str | None,
        Parameter(
            name=["--item_ids", "--item-ids"],
            help="Rank these items (separated by commas) instead of all.",
        ),
    ] = None,
    k: Annotated[int, Parameter(help="How many items.")] = 10,
    bundle: Bundle = None,
    include_seen: Annotated[
        bool, Parameter(help="Also items that the user has already had.")
    ] = False,
    explain: Annotated[
        bool, Parameter(help="Say which past events raised or lowered each score most.")
    ] = False,
    json: Annotated[bool, Parameter(help="Print JSON.")] = False,
) -> None:
    """Recommend items to a user, best first, from a bundle. Needs no torch."""
    import msgspec

    from distilrec.engine.recommender import load

    user_id = as_id(user_id, "--user_id")
    recommender = load(_bundle(bundle))
    asked = None
    if item_ids is not None:
        asked = [as_id(item, "--item_ids") for item in item_ids.split(",") if item.strip()]
        if not asked:
            raise ConfigError(
                "--item_ids names no item",
                fix="for example --item_ids 456,789",
                parameter="item_ids",
            )
    answers = recommender.recommend(user_id, asked, k, exclude_seen=not include_seen)
    because = {
        a.item_id: recommender.explain(user_id, a.item_id, k=3) if explain else [] for a in answers
    }
    known = recommender.knows_user(user_id)
    if json:
        items = [
            {"rank": rank, "item_id": item, "score": score, "title": recommender.title(item)}
            | ({"because": [reason._asdict() for reason in because[item]]} if explain else {})
            for rank, (item, score) in enumerate(answers, start=1)
        ]
        answer = msgspec.json.encode({"user_id": user_id, "known_user": known, "items": items})
        # JSON has escapes of its own, and is ASCII where the terminal may not be UTF-8.
        utf_8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(answer.decode() if utf_8 else json_text.dumps(msgspec.json.decode(answer)))
        return
    if not known:
        print(f"user {user_id} is unknown: this is the prior for everybody", file=sys.stderr)
    width = max((len(answer.item_id) for answer in answers), default=0)
    for item, score in answers:
        title = recommender.title(item)
        print(f"{item:>{width}}  {score:8.4f}  {'' if title == item else title}".rstrip())
        for reason in because[item]:
            print(
                f"{'':{width}}  {reason.contribution:+8.4f}    {recommender.title(reason.item_id)}"
            )


@app.command
def serve(
    *,
    bundle: Bundle = None,
    store: StoreAddress = "sqlite:///distilrec.db",
    store_prefix: StorePrefix = "distilrec:",
    store_password_file: StorePassword = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys: KeyFile = None,
    without_keys: Annotated[
        bool, Parameter(help="Listen to other machines without API keys.")
    ] = False,
    allowed_hosts: Annotated[
        tuple[str, ...],
        Parameter(help="Other names that the service is reached by without API keys."),
    ] = (),
    workers: Annotated[
        int, Parameter(help="Processes; more than one share users through Redis.")
    ] = 1,
    bundle_root: Annotated[
        Path | None,
        Parameter(
            help="Folder that bundles may be loaded from; the one that holds the bundle by default."
        ),
    ] = None,
    search: Annotated[
        Literal["exact", "quantised", "graph"] | None,
        Parameter(help="How the best items are found, if not as exported."),
    ] = None,
    max_users: Annotated[int, Parameter(help="Users whose state stays in memory.")] = 200_000,
    max_events: Annotated[
        int, Parameter(help="Latest events of a user that are remembered as seen.")
    ] = 10_000,
    max_k: Annotated[int, Parameter(help="Most items in one answer.")] = 1_000,
    max_batch: Annotated[
        int, Parameter(help="Most events, or recommendations, in one request.")
    ] = 1_000,
    max_body: Annotated[int, Parameter(help="Most bytes of one request.")] = 1_048_576,
    max_head: Annotated[
        int, Parameter(help="Most bytes of the path and headers of a request.")
    ] = 32_768,
    max_connections: Annotated[int, Parameter(help="Most open connections of a worker.")] = 1_000,
    head_seconds: Annotated[
        float, Parameter(help="Time for sending the headers of a request.")
    ] = 10.0,
    transfer_seconds: Annotated[
        float, Parameter(help="Time for sending a body, and for reading an answer.")
    ] = 60.0,
    max_pending: Annotated[int, Parameter(help="Most events that wait to be stored.")] = 50_000,
    log_requests: Annotated[
        bool, Parameter(help="Log every request, not only refusals of the service.")
    ] = False,
    drain_seconds: Annotated[
        float, Parameter(help="Say not ready for so long before closing, on SIGTERM.")
    ] = 0.0,
    ray: Annotated[
        str | None,
        Parameter(
            help="Run the workers as replicas on a Ray cluster: its address, auto, or local. "
            "Needs Redis."
        ),
    ] = None,
) -> None:
    """Serve a bundle over HTTP: recommendations that follow every event, and a playground at /."""
    from distilrec.serve.config import ServiceConfig

    config = ServiceConfig(
        bundle=str(_bundle(bundle).absolute()),
        store=store,
        store_prefix=store_prefix,
        store_password_file=None
        if store_password_file is None
        else str(store_password_file.absolute()),
        host=host,
        port=port,
        workers=workers,
        keys=None if keys is None else str(keys.absolute()),
        without_keys=without_keys,
        allowed_hosts=tuple(
            name.strip() for each in allowed_hosts for name in each.split(",") if name.strip()
        ),
        bundle_root=None if bundle_root is None else str(bundle_root.absolute()),
        search=search,
        max_users=max_users,
        max_events=max_events,
        max_k=max_k,
        max_batch=max_batch,
        max_body=max_body,
        max_head=max_head,
        max_connections=max_connections,
        head_seconds=head_seconds,
        transfer_seconds=transfer_seconds,
        max_pending=max_pending,
        log_requests=log_requests,
        drain_seconds=drain_seconds,
    )
    _warn_of_secret(store)
    if ray is not None:
        from distilrec.scale.ray_serve import serve_on_ray

        serve_on_ray(config, ray)
        return
    from distilrec.serve.server import serve as run_service

    run_service(config)


@app.command
def doctor(
    *,
    bundle: Bundle = None,
    store: StoreAddress = "sqlite:///distilrec.db",
    store_prefix: StorePrefix = "distilrec:",
    store_password_file: StorePassword = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys: KeyFile = None,
) -> None:
    """Try out everything that `distilrec serve` needs; exit code 1 where it would not work."""
    from distilrec.serve.config import ServiceConfig
    from distilrec.serve.doctor import diagnose

    config = ServiceConfig(
        bundle=str(_bundle(bundle)),
        store=store,
        store_prefix=store_prefix,
        store_password_file=None
        if store_password_file is None
        else str(store_password_file.absolute()),
        host=host,
        port=port,
        keys=None if keys is None else str(keys),
        without_keys=True,
    )
    failed = False
    for finding in diagnose(config):
        failed |= finding.verdict == "failed"
        print(f"{finding.verdict:>8}  {finding.what}: {finding.text}")
    if failed:
        sys.exit(1)


@app.command
def key(
    *,
    name: Annotated[str, Parameter(help="Whose key it is; messages name it.")],
    scopes: Annotated[
        str,
        Parameter(
            help="What it may do, separated by commas: recommend, events, items, users, admin, "
            "metrics."
        ),
    ] = "recommend,events",
    rate: Annotated[
        float | None, Parameter(help="Requests per second; no limit without it.")
    ] = None,
) -> None:
    """Make an API key: the secret goes to standard error, its entry for the file of keys to
    standard output.
    """
    from distilrec.serve.keys import SCOPES, new_key

    asked = [scope.strip() for scope in scopes.split(",")]
    chosen = [scope for scope in SCOPES if scope in asked]
    if len(chosen) != len(asked):
        raise ConfigError(
            f"the scopes {scopes!r} are not valid",
            fix=f"use some of: {', '.join(SCOPES)}",
            parameter="scopes",
        )
    if rate is not None and rate <= 0:
        raise ConfigError(
            f"the rate is {rate}", fix="use more than 0, or leave it out", parameter="rate"
        )
    secret, entry = new_key(name, chosen, rate)
    print(f"the key, shown only now: {secret}", file=sys.stderr)
    print(entry)


@app.command
def pseudonym(
    *,
    user_id: Annotated[str, Parameter(name=["--user_id", "--user-id"], help="Who.")],
    key: Annotated[
        str,
        Parameter(help="The environment variable that holds the key, as in data.pseudonym_key."),
    ] = "DISTILREC_PSEUDONYM_KEY",
) -> None:
    """The name under which a run with pseudonyms knows a user: what to ask `recommend`, `forget`
    and the service for.
    """
    from distilrec.data import pseudonyms

    print(pseudonyms.pseudonym(as_id(user_id, "user_id"), pseudonyms.pseudonym_key(key)))


@app.command
def forget(
    *,
    user_id: Annotated[str, Parameter(name=["--user_id", "--user-id"], help="Who.")],
    bundle: Bundle = None,
    run: Annotated[
        Path | None, Parameter(help="A whole run: its data, labels and bundles.")
    ] = None,
    missing_ok: Annotated[
        bool, Parameter(help="A user of whom nothing is known is no error.")
    ] = False,
) -> None:
    """Take a user out of the history in a bundle that no service has loaded, or out of a whole run.

    Exit code 2 where nothing is known about the user, unless --missing-ok is given.
    """
    if run is not None:
        from distilrec import runs

        with _progress() as progress, _held(run):
            done = runs.forget_user(runs.open_run(run, progress), user_id, missing_ok=missing_ok)
        print("\n".join(done) or "this run holds nothing about that user")
        return
    from distilrec.bundle.format import erase_user

    folder = _bundle(bundle)
    try:
        name = as_id(user_id, "user_id")
    except InvalidIdError:
        if not erase_user(folder, user_id):  # bundles made before ids followed a rule may hold it
            raise
        there = True
    else:
        there = any([erase_user(folder, text) for text in dict.fromkeys((name, user_id))])
    if not there and not missing_ok:
        raise UnknownUserError(
            f"the bundle {folder} holds nothing about the user {user_id!r}",
            fix="check the id; --missing-ok makes this no error",
            parameter="user_id",
        )
    print("erased" if there else "this bundle holds nothing about that user")


@app.command
def seen(
    *,
    user_id: Annotated[str, Parameter(name=["--user_id", "--user-id"], help="Who.")],
    runs: Annotated[Path, Parameter(help="Folder of run folders.")] = Path("runs"),
) -> None:
    """List the exported models that were trained on a user's rows, the oldest first."""
    from datetime import UTC, datetime

    from distilrec.runs.seen import models_that_saw

    found = models_that_saw(runs, as_id(user_id, "user_id"))
    for one in found:
        when = datetime.fromtimestamp(one.exported, UTC).isoformat(timespec="seconds")
        private = ", with differential privacy" if one.private else ""
        print(f"{one.model_version}  {when}  {one.dataset}{private}")
    if not found:
        print(f"no model recorded below {runs} was trained on this user")


def _warn_of_secret(store: str) -> None:
    from distilrec.serve.logs import log, start_logging
    from distilrec.stores.opening import holds_secret

    if holds_secret(store) and any(store in argument for argument in sys.argv):
        start_logging()
        text = (
            "the command line holds the password of the store, and every user of this machine can "
            "read it: "
            "give the address as DISTILREC_STORE, or the password by --store-password-file"
        )
        log("store", logging.WARNING, warning=text)


def _bundle(given: Path | None) -> Path:
    return given or Path(os.environ.get("DISTILREC_BUNDLE", _DEFAULT_RUN / "bundle"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a DistilrecError becomes a message and exit code 2, Ctrl-C exit code
    130.
    """
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal without UTF-8 gets escapes where it has no character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, result_action="return_value", exit_on_error=False)
    except CycloptsError:  # wrong options: cyclopts has already said which
        sys.exit(2)
    except DistilrecError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(missing_extra(package, _EXTRAS[package]))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one was", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UnicodeEncodeError as error:  # a file name, where the system's names are not UTF-8
        _fail(
            ConfigError(
                f"{error.object!a} cannot be written in {error.encoding}, the encoding of this "
                "system",
                fix="set PYTHONUTF8=1, or a locale with UTF-8",
            )
        )
    except OSError as error:
        _fail(StorageError(str(error), fix="check the space and the permissions of that folder"))


def _fail(error: DistilrecError) -> None:
    print(f"error [{error.code}]: {error}", file=sys.stderr)
    sys.exit(2)


def _config(dataset: str | None, path: Path | None, seed: int | None) -> RunConfig:
    import msgspec

    from distilrec.runs.config import DataConfig, RunConfig, read_config

    if (dataset is None) == (path is None):
        raise ConfigError(
            "say which data: either --dataset or --config",
            fix="for example `--dataset ml-100k`",
            parameter="dataset",
        )
    chosen = read_config(path) if path is not None else RunConfig(DataConfig(dataset=dataset))
    return chosen if seed is None else msgspec.structs.replace(chosen, seed=seed)


def _folder(run: Path | None, config: RunConfig) -> Path:
    if run is not None:
        return run
    data = config.data
    return Path("runs") / (data.dataset or data.name or Path(data.interactions or "log").stem)


@contextmanager
def _begun(
    dataset: str | None, config: Path | None, run: Path | None, seed: int | None, ray: str | None
) -> Iterator[tuple[RunConfig, Path, TerminalProgress, Workers | None]]:
    chosen = _config(dataset, config, seed)
    folder = _folder(run, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    with _progress() as progress, _held(folder):
        yield chosen, folder, progress, _workers(ray, folder)


@contextmanager
def _opened(folder: Path, ray: str | None = None) -> Iterator[tuple[Run, PreparedDataset]]:
    from distilrec import runs

    with _progress() as progress, _held(folder):
        run = runs.open_run(folder, progress, _workers(ray, folder))
        yield run, runs.open_data(run)


@contextmanager
def _held(run: Path) -> Iterator[None]:
    """One command at a time works on a run folder, where there is one."""
    with locked(run, wait=False) if run.is_dir() else nullcontext():
        yield


def _workers(ray: str | None, run: Path) -> Workers | None:
    if ray is None:
        return None
    from distilrec.scale.ray_workers import RayWorkers

    return RayWorkers(ray, shared=run.absolute())


@contextmanager
def _progress() -> Iterator[TerminalProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True)
    # an epoch may take minutes: the estimate must remember more than the last half a minute
    shown = console.is_terminal
    with Progress(
        *columns, console=console, disable=not shown, speed_estimate_period=86_400.0
    ) as bars:
        yield TerminalProgress(bars)


class TerminalProgress:
    """Progress bars on standard error; where that is no terminal, a line every half a minute."""

    def __init__(self, bars: Progress, every: float = 30.0) -> None:
        self._bars, self._every = bars, every
        self._tasks: dict[str, TaskID] = {}
        self._said = time.monotonic()

    def say(self, line: str) -> None:
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)
        if not self._bars.console.is_terminal and time.monotonic() - self._said > self._every:
            self._said = time.monotonic()
            left = self._bars.tasks[self._tasks[task]].time_remaining
            about = "" if left is None else f", about {timedelta(seconds=round(left))} to go"
            self.say(f"{task}: {done} of {total}{about}{note and f' ({note})'}")


def _show(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from distilrec.report.page import table, verdict

    header, *rows = table(comparison)
    shown = Table(
        title=f"{comparison.dataset}, {comparison.split}, test part, {comparison.users:,} users"
    )
    for place, name in enumerate(header):
        shown.add_column(name, justify="left" if place == 0 else "right", no_wrap=place > 0)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    wide = console if console.width >= 170 else Console(width=170)
    wide.print(shown)
    for line in verdict(comparison):
        print(line)


if __name__ == "__main__":
    main()
