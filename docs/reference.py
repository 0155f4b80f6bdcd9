"""Writes the generated pages of the docs site: the command line, the HTTP interface and the Python interface.

python docs/reference.py      # docs/reference/{cli,http,python}.md; `make docs` runs it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

from distilrec.cli import app
from distilrec.serve.app import _api, _kserve
from distilrec.serve.openapi import openapi
from distilrec.serve.service import Service

FOLDER = Path(__file__).parent / "reference"
PYTHON = {
    "Serving": ["distilrec.engine.recommender", "distilrec.engine.stored"],
    "Data": ["distilrec.data.preparation", "distilrec.data.schema", "distilrec.data.cleaning", "distilrec.data.checks"],
    "Teachers": ["distilrec.teachers.teacher", "distilrec.teachers.external", "distilrec.teachers.build"],
    "Knowledge": ["distilrec.labels.extract", "distilrec.labels.store", "distilrec.privacy.votes"],
    "Training": [
        "distilrec.training.trained",
        "distilrec.training.trainer",
        "distilrec.distill.distillation",
        "distilrec.privacy.dpsgd",
    ],
    "Evaluation": ["distilrec.report.comparison", "distilrec.measure.metrics", "distilrec.measure.statistics"],
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
    table = [*_api(Mock(spec=Service)), *_kserve(Mock(spec=Service))]
    described = openapi(table, with_keys=True)
    lines = ["# HTTP reference", "", "The service describes itself at `/openapi.json`; this page is made from it.", ""]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            lines += [f"## `{method.upper()} {path}`", "", operation["summary"], ""]
            if operation["parameters"]:
                lines += ["| parameter | in | |", "|---|---|---|"]
                lines += [
                    f"| `{p['name']}` | {p['in']} | {p.get('description', '')} |" for p in operation["parameters"]
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
    return " or ".join(f"{_type(each['schema'])} ({kind})" for kind, each in content["content"].items())


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if isinstance(schema.get("items"), dict) else "list"
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
        lines += [f"## {title}", "", *(f"::: {module}\n    options:\n      heading_level: 3\n" for module in modules)]
    return "\n".join(lines)


def main() -> None:
    """Writes the three pages."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "cli.md").write_text(app.generate_docs(output_format="markdown"), encoding="utf-8")
    (FOLDER / "http.md").write_text(http(), encoding="utf-8")
    (FOLDER / "python.md").write_text(python(), encoding="utf-8")


if __name__ == "__main__":
    main()
