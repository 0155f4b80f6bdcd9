"""Writes what is generated in the documents: the reference pages of the site, and the tables of
docs/configuration.md.

    python docs/reference.py

The pages are docs/reference/{cli,http,python}.md. `make docs` runs this.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args
from unittest.mock import Mock

import msgspec
from msgspec import inspect as msgspec_types

from distilrec.cli import app
from distilrec.data.checks import DataCheck
from distilrec.data.cleaning import Cleaning
from distilrec.data.queries import Query
from distilrec.data.schema import Feature, Schema
from distilrec.data.splits import Split
from distilrec.data.tables import DeltaTable, IcebergTable
from distilrec.distill.altered import AlteredConfig
from distilrec.distill.distillation import DistillationConfig
from distilrec.distill.sizes import SweepConfig
from distilrec.export.search import BundleConfig
from distilrec.labels.extract import LabelConfig
from distilrec.networks.build import StudentConfig
from distilrec.privacy.accounting import PrivateTrainingConfig
from distilrec.runs.config import BaselineConfig, DataConfig, RefreshConfig, RunConfig, TunedConfig
from distilrec.serve.app import endpoints
from distilrec.serve.openapi import openapi
from distilrec.settings import BOUNDS
from distilrec.targets import EventRole, Targets
from distilrec.teachers.build import EnsembleConfig, MemberConfig, SingleConfig
from distilrec.training.options import TrainingConfig

FOLDER = Path(__file__).parent / "reference"
PYTHON = {
    "Serving": [
        "distilrec.engine.recommender",
        "distilrec.engine.answers",
        "distilrec.engine.events",
        "distilrec.engine.stored",
    ],
    "Data": [
        "distilrec.data.preparation",
        "distilrec.data.schema",
        "distilrec.data.cleaning",
        "distilrec.data.checks",
    ],
    "Teachers": [
        "distilrec.teachers.teacher",
        "distilrec.teachers.external",
        "distilrec.teachers.build",
    ],
    "Labels": ["distilrec.labels.extract", "distilrec.labels.store", "distilrec.privacy.votes"],
    "Training": [
        "distilrec.training.trained",
        "distilrec.training.trainer",
        "distilrec.distill.distillation",
        "distilrec.privacy.dpsgd",
    ],
    "Evaluation": [
        "distilrec.report.comparison",
        "distilrec.measure.metrics",
        "distilrec.measure.statistics",
    ],
    "Runs": [
        "distilrec.runs",
        "distilrec.runs.config",
        "distilrec.settings",
        "distilrec.privacy.accounting",
        "distilrec.runs.seen",
    ],
    "Errors": ["distilrec.errors"],
}


def http() -> str:
    """Every endpoint with what it takes and gives, from the service's own description."""
    table = endpoints(Mock())
    described = openapi(table, with_keys=True)
    lines = [
        "# HTTP reference",
        "",
        "The service describes itself at `/openapi.json`; this page is made from it.",
        "",
    ]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            lines += [f"## `{method.upper()} {path}`", "", operation["summary"], ""]
            if operation["parameters"]:
                lines += ["| parameter | in | |", "|---|---|---|"]
                lines += [
                    f"| `{p['name']}` | {p['in']} | {p.get('description', '')} |"
                    for p in operation["parameters"]
                ]
                lines.append("")
            if body := operation.get("requestBody"):
                lines += [f"Takes {_link(body)}.", ""]
            if "content" in operation["responses"]["200"]:
                lines += [f"Gives {_link(operation['responses']['200'])}.", ""]
    lines += ["# Bodies", ""]
    for name, schema in sorted(described["components"]["schemas"].items()):
        lines += [f"## {name}", "", str(schema.get("description", "")).strip(), ""]
        if properties := schema.get("properties"):
            lines += ["| field | type | default |", "|---|---|---|"]
            required = schema.get("required", [])
            for field, kind in properties.items():
                default = "required" if field in required else f"`{kind.get('default')}`"
                lines.append(f"| `{field}` | {_type(kind)} | {default} |")
            lines.append("")
    return "\n".join(lines)


def _link(content: dict[str, Any]) -> str:
    return " or ".join(
        f"{_type(each['schema'])} ({kind})" for kind, each in content["content"].items()
    )


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return (
            f"list of {_type(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
        )
    return str(schema.get("type", "any"))


def python() -> str:
    """One section of mkdocstrings directives for each part."""
    lines = [
        "# Python reference",
        "",
        "What `import distilrec` gives is `distilrec.__all__`; it comes from the modules below.",
        "",
    ]
    for title, modules in PYTHON.items():
        lines += [
            f"## {title}",
            "",
            *(f"::: {module}\n    options:\n      heading_level: 3\n" for module in modules),
        ]
    return "\n".join(lines)


def _tagged(section: str, kinds: Any) -> Iterator[tuple[str, type]]:
    for kind in get_args(kinds):
        yield f'{section}, `kind = "{kind.__struct_config__.tag}"`', kind


CONFIGURATION = FOLDER.parent / "configuration.md"
_BETWEEN = re.compile(r"(<!-- settings: .*? -->\n).*?(?=<!-- end of settings -->)", re.DOTALL)
SECTIONS: tuple[tuple[str, type], ...] = (
    ("The top of the file", RunConfig),
    ("`[data]`", DataConfig),
    ('`interactions`, `users` and `items` in `[data]`, `kind = "sql"`', Query),
    ('`interactions`, `users` and `items` in `[data]`, `kind = "delta"`', DeltaTable),
    ('`interactions`, `users` and `items` in `[data]`, `kind = "iceberg"`', IcebergTable),
    ("`[data.schema]`", Schema),
    ("`user_features`, `item_features` and `item_attributes` in `[data.schema]`", Feature),
    ("`[[data.checks]]`", DataCheck),
    ("`[cleaning]`", Cleaning),
    ("`[targets]`", Targets),
    ("`events` in `[targets]`", EventRole),
    ("`[split]`", Split),
    *_tagged("`[teacher]`", SingleConfig | EnsembleConfig),
    ("`[[teacher.members]]`", MemberConfig),
    ("`[teacher_training]` and `[student_training]`", TrainingConfig),
    ("`[labels]`", LabelConfig),
    *_tagged("`[student]`", StudentConfig),
    ("`[baseline]`", BaselineConfig),
    ("`[tuned]`", TunedConfig),
    ("`[distillation]`", DistillationConfig),
    ("`[distillation.altered]`", AlteredConfig),
    ("`[bundle]`", BundleConfig),
    ("`[privacy]`", PrivateTrainingConfig),
    ("`[sweep]`", SweepConfig),
    ("`[refresh]`", RefreshConfig),
)


def configuration() -> str:
    """Return docs/configuration.md with the tables of all settings as they are in the code."""
    tables = "\n".join(line for title, kind in SECTIONS for line in _table(title, kind))
    return _BETWEEN.sub(
        lambda found: f"{found[1]}\n{tables}\n", CONFIGURATION.read_text(encoding="utf-8")
    )


def _table(title: str, kind: type) -> Iterator[str]:
    summary = (inspect.getdoc(kind) or "").split("\n\n")[0]
    yield from (f"### {title}", "", " ".join(summary.split()), "")
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    lines = field_lines(kind)
    for field in msgspec.structs.fields(kind):
        type_ = _type_of_setting(msgspec_types.type_info(field.type))
        yield f"| `{field.name}` | {type_} | {_default(kind, field)} | {lines[field.name]} |"
    yield ""


def field_lines(kind: type) -> dict[str, str]:
    """Return the text under each field of a settings class. Raises AssertionError for a field
    without one.
    """
    body = ast.parse(dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(below, ast.Expr), (
                f"{kind.__name__}.{field.target.id} has no line that explains it"
            )
            found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _type_of_setting(kind: Any) -> str:
    match kind:
        case msgspec_types.IntType() | msgspec_types.FloatType():
            name = "integer" if isinstance(kind, msgspec_types.IntType) else "number"
            bounds = ((words, getattr(kind, bound)) for bound, words, _ in BOUNDS)
            limits = " and ".join(
                f"{words} {value:g}" for words, value in bounds if value is not None
            )
            return f"{name}, {limits}" if limits else name
        case msgspec_types.BoolType():
            return "true or false"
        case msgspec_types.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case msgspec_types.UnionType():
            names = [
                _type_of_setting(each)
                for each in kind.types
                if not isinstance(each, msgspec_types.NoneType)
            ]
            return ", ".join(dict.fromkeys(names))
        case msgspec_types.VarTupleType():
            return (
                "sections"
                if (inner := _type_of_setting(kind.item_type)) == "section"
                else f"list of {inner}s"
            )
        case msgspec_types.StructType():
            return "section"
        case _:
            return "text"


def _default(kind: type, field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    of_students = (
        getattr(_default_of(RunConfig, "student_training"), field.name)
        if kind is TrainingConfig
        else None
    )
    other = (
        f"; students {_value(of_students)}"
        if of_students is not None and of_students != field.default
        else ""
    )
    return _value(field.default) + other


def _default_of(kind: type, name: str) -> Any:
    return next(field.default for field in msgspec.structs.fields(kind) if field.name == name)


def _value(value: Any) -> str:
    nothing = value is None or value is msgspec.UNSET or value == ""
    if nothing or isinstance(value, msgspec.Struct | tuple):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "<code>&#124;</code>" if text == "|" else f"`{text}`"  # a bar would end the cell


def main() -> None:
    """Write the three pages and the tables of the configuration."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "cli.md").write_text(app.generate_docs(output_format="markdown"), encoding="utf-8")
    (FOLDER / "http.md").write_text(http(), encoding="utf-8")
    (FOLDER / "python.md").write_text(python(), encoding="utf-8")
    CONFIGURATION.write_text(configuration(), encoding="utf-8")


if __name__ == "__main__":
    main()
