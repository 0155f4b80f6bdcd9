"""The public names of each package: promised by a document, cheap to import, and all that examples use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import distilrec
from distilrec import errors
from tests import ROOT

SOURCE = ROOT / "src" / "distilrec"
PACKAGES = [
    "distilrec",
    *sorted(f"distilrec.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")),
]
PACKAGES = [name for name in PACKAGES if name != "distilrec.cli"]  # its door is the command line
HEAVY = {
    "torch",
    "polars",
    "confluent_kafka",
    "pandas",
    "matplotlib",
    "jinja2",
    "starlette",
    "redis",
    "ray",
}


def promised() -> dict[str, list[str]]:
    """The table of docs/compatibility.md: the names of each package."""
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(distilrec(?:\.\w+)?)` \| (.*) \|$", page, re.MULTILINE)
    return {package: re.findall(r"`(\w+)`", names) for package, names in rows}


def test_the_names_of_every_package_are_those_that_the_document_promises():
    found = {package: sorted(import_module(package).__all__) for package in PACKAGES}
    assert promised() == {package: names for package, names in found.items() if names}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_hides_no_module(package):
    door = import_module(package)
    for name in door.__all__:
        assert getattr(door, name) is not None
        folder = Path(door.__file__).parent
        assert not (folder / f"{name}.py").exists(), f"{package}.{name} is a module and a name"
    if door.__all__:
        with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
            _ = door.nothing


def fresh(code: str) -> str:
    """Return what code prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_every_package_loads_nothing_heavy():
    loaded = fresh(
        "import sys\n"
        + "".join(f"import {package}\n" for package in PACKAGES)
        + f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    assert loaded.strip() == "[]"


def test_the_names_that_serve_load_neither_torch_nor_polars():
    names = "".join(
        f"from {package} import {', '.join(import_module(package).__all__)}\n"
        for package in (
            "distilrec.bundle",
            "distilrec.engine",
            "distilrec.serve",
            "distilrec.stores",
        )
    )
    loaded = fresh(f"import sys\n{names}print(sorted({{'torch', 'polars'}} & set(sys.modules)))")
    assert loaded.strip() == "[]"


def test_a_name_that_trains_says_which_extra_it_needs_where_torch_is_missing():
    said = fresh(
        "import sys\n"
        "sys.modules['torch'] = None  # as if it were not installed\n"
        "from distilrec.errors import MissingExtraError\n"
        "for package, name in [('distilrec', 'train_model'), ('distilrec.training', 'train_model')]:\n"
        "    try:\n"
        "        getattr(__import__(package, fromlist=['x']), name)\n"
        "    except MissingExtraError as error:\n"
        "        print(error.context['extra'])\n"
    )
    assert said.split() == ["train", "train"]


def imported(code: str) -> list[tuple[str, str]]:
    """Return what code imports of distilrec, as pairs of a module and a name."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "distilrec":
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [
                (alias.name, "__all__")
                for alias in node.names
                if alias.name.split(".")[0] == "distilrec"
            ]
    return found


def examples() -> list:
    """Return the Python of README.md, of the documents, of examples/ and of recommend.py."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    blocks = [
        pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
        for page in pages
        for number, code in enumerate(
            re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        )
    ]
    files = [*sorted((ROOT / "examples").rglob("*.py")), ROOT / "recommend.py"]
    return blocks + [
        pytest.param(path.read_text(encoding="utf-8"), id=str(path.relative_to(ROOT)))
        for path in files
    ]


@pytest.mark.parametrize("code", examples())
def test_documents_and_examples_import_public_names_only(code):
    for module, name in imported(code):
        if (module, name) == ("distilrec.cli", "main"):
            continue
        if module == "distilrec.errors":
            assert hasattr(errors, name)
            continue
        assert module in PACKAGES, f"{module} is not a public package"
        public = {*import_module(module).__all__, "__all__"}
        packages = {package.removeprefix("distilrec.") for package in PACKAGES}
        assert name in public or (module == "distilrec" and name in packages), f"{module}.{name}"


def test_the_check_of_imports_sees_them():
    assert imported(
        "def f():\n    from distilrec.data.fetch import x as y\nimport distilrec.engine"
    ) == [
        ("distilrec.engine", "__all__"),
        ("distilrec.data.fetch", "x"),
    ]
    assert distilrec.__all__ == sorted(distilrec.__all__)
