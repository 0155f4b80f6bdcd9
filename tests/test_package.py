"""The public names, the imports, and the documents."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import distilrec
from distilrec import errors
from tests import ROOT
from tests.conftest import pytest_ignore_collect


@pytest.mark.slow
def test_serving_loads_neither_torch_nor_polars(bundle):
    """In a fresh interpreter, through the public door."""
    code = (
        "import sys, distilrec\n"
        f"print(distilrec.load({str(bundle)!r}).recommend('u1')[0].item_id)\n"
        "heavy = {'torch', 'polars', 'pandas', 'matplotlib', 'jinja2', 'distilrec.data'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("i")


def all_errors(base=errors.DistilrecError):
    return [
        base,
        *(descendant for child in base.__subclasses__() for descendant in all_errors(child)),
    ]


def test_every_error_has_its_own_documented_code():
    codes = [error.code for error in all_errors()]
    assert len(set(codes)) == len(codes)
    text = (ROOT / "docs" / "errors.md").read_text()
    for error in all_errors():
        assert f"`{error.code}`" in text, f"docs/errors.md lacks {error.code}"
        assert error.__name__ in (errors.__doc__ or "")


def test_errors_say_how_to_fix_them():
    error = errors.missing_extra("torch", "train")
    assert str(error) == (
        "this command needs the package 'torch', which is not installed\n  how to fix: pip install 'distilrec[train]'"
    )
    assert error.context == {"package": "torch", "extra": "train"}


def test_the_method_names_lines_that_exist():
    """docs/method.md says `path:name` for every equation: the file must exist and define the name."""
    references = re.findall(r"`(src/[\w/]+\.py):(\w+)`", (ROOT / "docs" / "method.md").read_text())
    assert len(references) > 20
    for path, name in references:
        text = (ROOT / path).read_text()
        assert re.search(rf"(def|class) {name}\b|^\s+{name} = ", text, re.MULTILINE), (
            f"{path} has no {name}"
        )


def test_every_quality_metric_and_loss_is_in_the_method():
    import inspect

    from distilrec.distill import losses
    from distilrec.measure import metrics

    text = (ROOT / "docs" / "method.md").read_text()
    for module in (metrics, losses):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_") and function.__module__ == module.__name__:
                word = name.replace("_", " ")
                assert f":{name}`" in text or word in text, f"docs/method.md lacks {name}"


def test_every_command_and_setting_is_documented():
    import msgspec

    from distilrec.cli import app
    from distilrec.runs.config import RunConfig

    commands = (ROOT / "docs" / "commands.md").read_text()
    for name in app:
        if not name.startswith("-"):
            assert f"`distilrec {name}" in commands, f"docs/commands.md lacks the command {name}"
    settings = (ROOT / "docs" / "configuration.md").read_text()

    def walk(kind):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in settings, (
                f"docs/configuration.md lacks {kind.__name__}.{field.name}"
            )
            for argument in getattr(field.type, "__args__", (field.type,)):
                if isinstance(argument, type) and issubclass(argument, msgspec.Struct):
                    walk(argument)

    walk(RunConfig)


def test_the_version_is_in_the_changelog():
    assert f"## [{distilrec.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pinned_versions_are_those_that_are_asked_for():
    """release/constraints.txt pins every package that an extra for users names, to a version that it allows."""
    lines = (ROOT / "release" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = {
        "redis",
        "kafka",
        "ann",
        "onnx",
        "ray",
        "tune",
        "privacy",
        "checks",
        "cloud",
        "postgresql",
        "sql",
        "delta",
        "iceberg",
        "texts",
        "train",
    }
    assert set(extras) == ours | {"adapters", "dev", "docs", "bench"}
    for wish in map(
        Requirement,
        [*project["dependencies"], *(requirement for name in ours for requirement in extras[name])],
    ):
        if wish.name != "distilrec":
            versions = [next(iter(pin.specifier)).version for pin in pins if pin.name == wish.name]
            assert versions, f"{wish.name} is not pinned: run make constraints"
            assert all(version in wish.specifier for version in versions), (
                f"{wish} and {versions}: run make constraints"
            )


def test_the_pinned_torch_is_named_in_every_step_that_installs_it():
    """The extra takes any torch from 2.4 on; what is built here has the pinned one, and no other."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "torch>=2.4" in extras["train"]
    steps = re.findall(
        r"^\t.*(?:\$\(PIP\)|pip install) .*$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert len(steps) >= 6
    for step in steps:
        assert "$(TORCH)" in step or "--no-deps" in step, step


def test_every_extra_is_tried_and_documented():
    import importlib.util

    spec = importlib.util.spec_from_file_location("packages", ROOT / "release" / "packages.py")
    packages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packages)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(packages.TRIALS) == set(extras) - {"adapters", "dev", "docs", "bench"} | {"none"}
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.search(r"^EXTRAS \?= (.*)$", makefile, re.MULTILINE)[1].split()) == set(
        packages.TRIALS
    )
    installation = (ROOT / "docs" / "index.md").read_text()
    for extra in set(packages.TRIALS) - {"none"}:
        assert f"[{extra}]" in installation, f"docs/index.md lacks the extra {extra}"


def test_every_command_of_make_is_in_contributing():
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for target in set(targets) - {"system"}:
        assert f"`make {target}`" in text, f"CONTRIBUTING.md lacks make {target}"


def test_everything_about_the_service_is_documented(bundle, tmp_path):
    """Every endpoint, option and metric is in docs/serving.md."""
    import msgspec

    from distilrec.serve.app import endpoints
    from distilrec.serve.config import ServiceConfig
    from distilrec.serve.keys import SCOPES
    from distilrec.serve.pages import PAGES
    from distilrec.serve.service import open_service

    text = (ROOT / "docs" / "serving.md").read_text()
    service = open_service(ServiceConfig(str(bundle), store=f"sqlite:///{tmp_path / 'store.db'}"))
    try:
        for endpoint in endpoints(service):
            path = endpoint.path.replace(":path", "")
            short = (
                path.removeprefix("/v2/models/{name}/versions/{version}")
                if "{version}" in path
                else path
            )
            assert f"{short}`" in text or short == "", (
                f"docs/serving.md lacks {endpoint.method} {path}"
            )
        for path in (path for path in PAGES if path.count("/") == 1):
            assert f"`{path}`" in text or f" {path}`" in text, f"docs/serving.md lacks {path}"
        names = {metric.name for metric in service.metrics.registry.collect()}
        for name in names:
            assert f"`{name}" in text, f"docs/serving.md lacks the metric {name}"
    finally:
        service.store.close()
    rules = (ROOT / "deploy" / "alerts.yml").read_text()
    for used in set(re.findall(r"distilrec_\w+", rules)):
        assert any(used.removesuffix("_bucket").removesuffix("_total") == name for name in names), (
            used
        )
    guide = (ROOT / "docs" / "monitoring.md").read_text()
    for alert in re.findall(r"alert: (\w+)", rules):
        assert f"`{alert}`" in guide, f"docs/monitoring.md does not say what to do on {alert}"
    for field in msgspec.structs.fields(ServiceConfig):
        assert f"`{field.name}`" in text, f"docs/serving.md lacks the option {field.name}"
    for scope in SCOPES:
        assert scope in text


@pytest.mark.slow
def test_imports_go_one_way():
    """The layers of pyproject.toml, and nothing of the training side in what serves."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    sorted((ROOT / "examples").glob("*/*.toml")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_recipes_are_valid_and_documented(recipe):
    """Their data are not in the project: that the configuration can be read, and that without data they say what is missing."""
    from distilrec.runs.config import read_config

    config = read_config(recipe)
    assert (config.data.name or config.data.dataset) in (ROOT / "docs" / "domains.md").read_text()
    if config.data.dataset is not None:  # it is fetched
        return
    done = subprocess.run(
        [sys.executable, recipe.parent / "recipe.py", "--source", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nowhere is not there\n  how to fix: give the folder of" in done.stderr


@pytest.mark.slow
def test_the_examples_of_the_quick_start_run(bundle, tmp_path):
    """The Python of docs/index.md, on the bundle of the small run; its configuration, on the tables of the small run."""
    from tests.small_run import tables

    text = (ROOT / "docs" / "index.md").read_text()
    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    script = (
        python.replace("runs/mine/bundle", str(bundle))
        .replace('"123"', '"u1"')
        .replace('"item-7"', '"i7"')
    )
    assert script != python
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 5
    assert "Thing number" in done.stdout
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my.toml").write_text(toml)
    names = {"user_id": "customer", "item_id": "sku", "timestamp": "bought_at"}
    tables()["log"].rename(names).write_csv(tmp_path / "log.csv")
    command = [
        sys.executable,
        "-m",
        "distilrec.cli",
        "prepare",
        "--config",
        "my.toml",
        "--run",
        "runs/mine",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "rows kept" in said


def test_tests_mirror_the_packages():
    """What is tested in `tests/<package>` lives in `distilrec.<package>`; the rest is about all."""
    folders = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
    packages = {path.parent.name for path in (ROOT / "src" / "distilrec").glob("*/__init__.py")}
    assert folders and {folder.name for folder in folders} <= packages | {"cli"}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_quick_tests_leave_out_every_mark():
    """`make test-fast` is documented, and deselects all marks that pyproject.toml declares."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    marks = {line.split(":")[0] for line in options["markers"]}
    assert marks == {
        "adapters", "chromium", "gpu", "mariadb", "postgresql", "ray", "redis", "server", "slow"
    }  # fmt: skip
    recipe = re.search(
        r"^test-fast:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert recipe is not None
    expression = re.search(r'-m "([^"]+)"', recipe[1])
    assert expression is not None
    assert set(re.findall(r"not (\w+)", expression[1])) == marks
    assert "`make test-fast`" in (ROOT / "CONTRIBUTING.md").read_text()
    used = set(
        re.findall(
            r"pytest\.mark\.(\w+)",
            "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py")),
        )
    )
    assert marks - {"chromium"} <= used


def test_what_all_tests_share_imports_nothing_heavy():
    """A test of one function starts without torch, polars and a browser."""
    code = (
        "import sys, tests.conftest, tests.servers\n"
        "print(sorted({'torch', 'polars', 'playwright', 'numba', 'redis'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_a_module_that_is_deselected_as_a_whole_is_not_read(tmp_path):
    module = tmp_path / "test_slow.py"
    module.write_text("import nothing_like_this\n\npytestmark = pytest.mark.slow\n")

    def ignored(selection):
        config = SimpleNamespace(option=SimpleNamespace(markexpr=selection))
        return pytest_ignore_collect(module, config)

    assert ignored("not redis and not slow")
    assert not any(
        ignored(selection) for selection in ("", "slow", "not redis", "not slow or redis")
    )
