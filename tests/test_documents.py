"""The examples of README.md and docs/: Python is run, configurations are read, commands are parsed, bodies are decoded."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock

import msgspec
import pytest
import yaml

from distilrec import errors, load
from distilrec.bundle.format import read_bundle
from distilrec.cli import app
from distilrec.engine.onnx_files import write_onnx
from distilrec.engine.rules import Rules, read_rules
from distilrec.engine.web import write_drec
from distilrec.report.gate import Thresholds
from distilrec.runs.config import RunConfig
from distilrec.serve.app import endpoints
from distilrec.serve.config import ServiceConfig
from distilrec.serve.http import Endpoint
from distilrec.serve.schemas import (
    EventsRequest,
    ExperimentResponse,
    PopularRequest,
    RecommendRequest,
    SimilarRequest,
)
from distilrec.settings import converted
from tests import ROOT
from tests.films import export_demo
from tests.small_run import tables

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("decisions/*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def blocks(language: str) -> list:
    """Every block of a language, named by its page and place in it."""
    return [
        pytest.param(text, id=f"{name}-{place}")
        for name, page in TEXTS.items()
        for place, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL))
    ]


def commands() -> list:
    """Every line of code that begins with distilrec, without what a shell would do with it."""
    found = set()
    for page in TEXTS.values():
        lines = re.findall(r"^(?:    )+(distilrec .*)$", page, re.MULTILINE)
        lines += [
            line
            for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
            for line in block.splitlines()
        ]
        lines += re.findall(r"`(distilrec \w[^`]*)`", page)
        found |= {
            re.split(r"  +#|>>|\|\||\\$", line)[0].strip()
            for line in lines
            if line.startswith("distilrec ")
        }
    return sorted(found)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A folder with runs/ml-100k/bundle of a stand-in, and the student as one file and as graphs."""
    folder = tmp_path_factory.mktemp("films")
    run = export_demo(folder).parent
    write_drec(read_bundle(run / "bundle"), run / "student.drec")
    write_onnx(read_bundle(run / "bundle"), run / "onnx")
    return folder


QUICK_START = "runs/mine"  # the block of docs/index.md has a test of its own


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [block for block in blocks("python") if QUICK_START not in block.values[0]]
)
def test_python_runs(code, films, tmp_path):
    """What a page leaves to its reader (a model, a configuration) is given here."""
    given = ""
    if "my_model(" in code:
        small = tmp_path / "small"
        small.mkdir()
        for name, table in tables().items():
            table.write_csv(small / f"{name}.csv")
        given = (
            "import sys, numpy, pathlib\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "from distilrec import run_all\n"
            "from tests.small_run import small_config\n"
            f"folder = pathlib.Path({str(small)!r})\n"
            "config = small_config(folder)\n"
            "my_model = lambda histories: numpy.ones((len(histories), 42), numpy.float32)\n"
        )
    done = subprocess.run(
        [sys.executable, "-c", given + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=films,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("toml"))
def test_configurations_are_valid(text):
    told = tomllib.loads(text)
    if "placements" in told:
        for name, rules in told["placements"].items():
            converted(rules, Rules, name)
        return
    if "latency" in told:
        converted(told, Thresholds, "gate.toml")
        return
    told.setdefault("data", {})
    if "dataset" not in told["data"]:
        told["data"].setdefault("interactions", "log.csv")
    converted(told, RunConfig, "my.toml")


@pytest.mark.slow
def test_the_rules_of_the_pages_are_followed(films, tmp_path):
    recommender, file = load(films / "runs" / "ml-100k" / "bundle"), tmp_path / "rules.toml"
    texts = [text for (text,) in (block.values for block in blocks("toml")) if "placements" in text]
    assert texts
    for text in texts:
        file.write_text(text)
        for rules in read_rules(file).values():
            assert recommender.check_rules(rules) == []
            assert len(recommender.arrange("stranger", rules, 5).items) >= 3


@pytest.mark.parametrize("text", blocks("json"))
def test_bodies_are_valid(text):
    kinds = {
        "item_ids": SimilarRequest,
        "window": PopularRequest,
        "events": EventsRequest,
        "result": ExperimentResponse,
    }
    kind = next((kinds[name] for name in kinds if name in json.loads(text)), RecommendRequest)
    msgspec.json.decode(text, type=kind)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_valid(text):
    assert yaml.safe_load(text)


def crontab() -> str:
    return (ROOT / "deploy" / "distilrec-refresh.cron").read_text()


@pytest.mark.parametrize("line", [line for line in crontab().splitlines() if line[0].isdigit()])
def test_lines_of_cron_are_a_time_a_user_and_a_command(line):
    *when, user, command = line.split(maxsplit=6)
    assert [re.fullmatch(r"\*|\d+", field) is not None for field in when] == [True] * 5
    assert user == "distilrec" and command.startswith("/opt/distilrec/bin/distilrec refresh ")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_units_of_systemd_are_valid(tmp_path):
    units = sorted([*(ROOT / "deploy").glob("*.service"), *(ROOT / "deploy").glob("*.timer")])
    for path in units:  # what is not installed here is taken for there
        text = re.sub(
            r"(?<==)(\+?)/\S+/(distilrec|systemctl)(?= )", r"\1/bin/true", path.read_text()
        )
        (tmp_path / path.name).write_text(text)
    files = [str(tmp_path / path.name) for path in units]
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line], done.stderr


def deployed() -> list:
    """The commands of the unit of systemd and of the container."""
    units = "".join(path.read_text() for path in sorted((ROOT / "deploy").glob("*.service")))
    lines = re.findall(r"^ExecStart(?:Pre)?=\S+/(distilrec .*)$", units, re.MULTILINE)
    lines += [
        line.split(" || ")[0] for line in re.findall(r"^\d.* \S+/(distilrec .*)$", crontab(), re.M)
    ]
    (entry,) = re.findall(
        r"^ENTRYPOINT (\[.*\])$", (ROOT / "deploy" / "Containerfile").read_text(), re.MULTILINE
    )
    return [*lines, shlex.join(json.loads(entry))]


@pytest.mark.parametrize("line", [*commands(), *deployed()])
def test_commands_exist_with_their_options(line):
    words = [
        word
        for word in shlex.split(line.replace("…", "x").split(" and ")[0])
        if word not in {"x", "[--explain]"}
    ]
    words = [word for word in words[1:] if not word.startswith("#")]
    options = {word.split("=")[0] for word in words if word.startswith("--")}
    names = [word for word in words if not word.startswith("--")]
    command = app[names[0]]
    if names[0] in {"data", "rules"}:
        command = command[names[1]]
    known = {name for argument in command.assemble_argument_collection() for name in argument.names}
    assert options <= known, f"{line}: no option {sorted(options - known)}"


def service_table() -> list[Endpoint]:
    return endpoints(Mock())


def test_paths_of_the_service_exist():
    """Every path below /v1 and /v2 that a page names is one of the service's."""
    table = service_table()
    patterns = [
        re.sub(r"\{[^}]+\}", "[^/]+", re.sub(r"\{(\w+):path\}", r"{\1}", endpoint.path))
        for endpoint in table
    ]
    for name, page in TEXTS.items():
        for path in re.findall(r"(?<![\w.])(/v[12](?:/[\w{}:-]+)*)", page):
            assert any(re.fullmatch(pattern, path) for pattern in [*patterns, "/v1", "/v2"]), (
                f"{name}: {path}"
            )


def module_of(file: Path):
    """Return a program of ours as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_summary_of_all_data_sets_is_that_of_the_results():
    summary = module_of(ROOT / "bench" / "summary.py")
    text = TEXTS["docs/quality.md"]
    assert summary.page(text, summary.results(summary.RESULTS)) == text, (
        "run bench/summary.py --write"
    )


def test_the_tables_of_settings_are_those_of_the_code():
    reference = module_of(DOCS / "reference.py")
    assert reference.configuration() == reference.CONFIGURATION.read_text(encoding="utf-8"), (
        "run docs/reference.py"
    )


def test_the_layers_are_those_of_the_import_contract():
    """The table of docs/architecture.md names the folders of the contract in its order, row by row."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = [
        [name.strip().removeprefix("distilrec.") for name in layer.split("|")] for layer in layers
    ]
    folders = [
        [name for name in row if (ROOT / "src" / "distilrec" / name).is_dir()] for row in rows
    ]
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|", page.split("## The life of a log")[0], re.MULTILINE
    )
    told = [re.findall(r"`(\w+)`", row) for row in table]
    assert told[0] == ["cli"]  # a module or a folder
    assert [sorted(row) for row in told[1:]] == [
        sorted(row) for row in folders if row and row != ["cli"]
    ]


def test_the_glossary_is_alphabetical():
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+\[[^|]+\) \|$", (DOCS / "glossary.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 100
    assert rows == sorted(set(rows), key=str.casefold)


def test_the_index_of_decisions_is_whole():
    folder = DOCS / "decisions"
    listed = re.findall(
        r"^\| \d{4}-\d\d-\d\d \| \[[^\]]+\]\(([\w-]+\.md)\) \|$",
        (folder / "index.md").read_text(),
        re.MULTILINE,
    )
    assert sorted(listed) == sorted(
        page.name for page in folder.glob("*.md") if page.name != "index.md"
    )


# What is said in words: tables, links, paths, targets and defaults

OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
EVERYTHING = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in [*PAGES, *OTHERS, *sorted((ROOT / "docs" / "decisions").glob("*.md"))]
}
FOLDERS = ("src", "tests", "bench", "examples", "docs", "deploy", "release", "fuzz", ".ci")
MADE = ("docs/reference", "bench/results/")  # by `make docs`, by benchmarks


def cells(row: str) -> list[str]:
    """The cells of a row of a table; a bar after a backslash is none of the table's."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip()[1:-1])]


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_row_of_a_table_has_a_header(name):
    """A blank line ends a table: what follows is shown as text."""
    text = re.sub(r"```.*?```", "", EVERYTHING[name], flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    for table in tables:
        header, line, *rows = table.splitlines() if table.count("\n") else [table, ""]
        assert re.fullmatch(r"\|(?:\s*:?-+:?\s*\|)+", line.strip()), (
            f"{name}: no header above {header!r}"
        )
        for row in rows:
            assert len(cells(row)) == len(cells(header)), (
                f"{name}: {row!r} has not the columns of {header!r}"
            )


def headings(text: str) -> set[str]:
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", EVERYTHING)
def test_links_lead_to_what_they_say(name):
    folder = (ROOT / name).parent
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", EVERYTHING[name]):
        path, _, anchor = target.partition("#")
        named = re.search(r"[\w./-]+\.(?:md|yml|toml|py|service|txt)\b", text)
        if re.match(r"https?://", target):
            assert named is None, f"{name}: {text!r} is a file of ours and leads to {target}"
            continue
        there = (folder / path).resolve() if path else ROOT / name
        if (
            there.parent == DOCS / "reference"
        ):  # made by docs/reference.py; `make docs` checks links to it
            assert there.stem in {"cli", "http", "python"}, f"{name}: there is no {target}"
            continue
        assert there.is_file(), f"{name}: there is no {target}"
        if named is not None:
            assert there.name == Path(named[0]).name, f"{name}: {text!r} leads to {target}"
        if anchor:
            assert anchor in headings(there.read_text()), f"{name}: {target} has no such heading"


def test_the_changelog_is_ours():
    for name, text in EVERYTHING.items():
        for target in re.findall(r"\[changelog\]\(([^)]+)\)", text, re.IGNORECASE):
            assert target.endswith("CHANGELOG.md"), f"{name}: {target}"


@pytest.mark.parametrize("name", EVERYTHING)
def test_named_files_exist(name):
    """Whatever stands in backticks and begins with one of our folders; braces and stars stand for several.

    After a colon stands what the file defines.
    """
    for path in re.findall(
        rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[^`\s]*)", EVERYTHING[name]
    ):
        if path.startswith(MADE) and not (ROOT / path).exists():
            continue
        braces = re.search(r"\{([^}]*)\}", path)
        for part in braces[1].split(",") if braces else [""]:
            one = path.replace(braces[0], part) if braces else path
            file, _, defined = one.partition(":")
            found = list(ROOT.glob(file.rstrip("/.")))
            assert found, f"{name}: there is no {one}"
            if defined:
                last = defined.split(".")[-1]
                assert re.search(
                    rf"(?:def|class) {last}\b|^{last} =", found[0].read_text(), re.MULTILINE
                ), f"{name}: {one}"


def test_targets_of_make_exist():
    targets = set(
        re.findall(
            r"^([\w-]+)(?=[^=]*:(?!=))|^(recipe-)%", (ROOT / "Makefile").read_text(), re.MULTILINE
        )
    )
    known = {one or other for one, other in targets}
    for name, text in EVERYTHING.items():
        for target in re.findall(r"(?:`|^    )make ([a-z][\w-]*)", text, re.MULTILINE):
            assert target in known or target.startswith("recipe-"), f"{name}: make {target}"


def test_the_seeds_of_make_bench():
    (words,) = re.findall(r"quality over (\d+) seeds", EVERYTHING["CONTRIBUTING.md"])
    recipe = re.search(
        r"^bench:.*?\n\n", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL
    )[0]
    assert set(re.findall(r"--seeds (\d+)", recipe)) == {words}


def shown(value) -> set[str]:
    """How a table may write a default."""
    if value in (None, "", ()):
        return {"none", ""}
    if isinstance(value, bool):
        return {str(value).lower()}
    if isinstance(value, tuple):
        return {",".join(value)}
    if isinstance(value, float | int):
        return {f"{value:g}", f"{value:.0e}".replace("e-0", "e-"), str(value)}
    return {str(value), f'"{value}"'}


def table_of(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with a column."""
    (table,) = re.findall(
        rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", EVERYTHING[page], re.MULTILINE
    )
    return [cells(row) for row in table.splitlines()]


def test_the_defaults_of_the_service():
    """Every option of `distilrec serve` in docs/serving.md has the default of the code."""
    given = {
        argument.field_info.name: argument.field_info.default
        for argument in app["serve"].assemble_argument_collection()
        if argument.name.startswith("--")
    }
    for options, defaults, _ in table_of("docs/serving.md", "option"):
        names = re.findall(r"`(\w+)`", options)
        values = defaults.split(", ") if ", " in defaults else [defaults] * len(names)
        for name, value in zip(names, values, strict=True):
            said = {
                "bundle": "runs/ml-100k/bundle",
                "bundle_root": "the folder that holds the bundle",
                "search": "as exported",
            }
            if name in said:
                assert given[name] is None and value == said[name]
            elif given[name] is False:
                assert value in {"none", "false"}
            else:
                assert value in shown(given[name]), f"{name}: {value}"
    documented = {
        name
        for options, *_ in table_of("docs/serving.md", "option")
        for name in re.findall(r"`(\w+)`", options)
    }
    assert documented == set(given)
    fields = {field.name: field.default for field in msgspec.structs.fields(ServiceConfig)}
    assert {name: given[name] for name in fields if name != "bundle"} == {
        n: d for n, d in fields.items() if n != "bundle"
    }


def test_the_table_of_errors_is_that_of_the_code():
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.DistilrecError)
    }
    rows = table_of("docs/errors.md", "code")
    assert [row[1] for row in rows] == list(dict.fromkeys(row[1] for row in rows))
    assert {name: (kind.code, str(kind.http_status)) for name, kind in classes.items()} == {
        name: (code.strip("`"), status) for code, name, status, _ in rows
    }


def test_the_table_of_endpoints_names_their_scopes():
    table = {
        (endpoint.method, re.sub(r":\w+}", "}", endpoint.path)): endpoint.scope or ""
        for endpoint in service_table()
    }
    said = {}
    for names, scope, _ in table_of("docs/serving.md", "endpoint"):
        method = ""
        for name in re.findall(r"`([^`]+)`", names):
            method, path = name.split() if " " in name else (method, name)
            if method and path.startswith("/"):
                said[method, path] = scope
    versions = {
        key for key in table if "/versions/" in key[1]
    }  # one row: the same as without a version
    for method, path in versions:
        assert table[method, path] == table[method, path.replace("/versions/{version}", "")]
    pages = {("GET", "/openapi.json"), ("GET", "/"), ("GET", "/console")}
    assert {key: said.get(key) for key in table.keys() - versions} == {
        key: table[key] for key in table.keys() - versions
    }
    assert {said[key] for key in pages} == {""}
    assert said.keys() == (table.keys() - versions) | pages
