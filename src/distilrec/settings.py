"""Settings: frozen classes whose fields say which values they allow, and the TOML files that give
them.
"""

from __future__ import annotations

import difflib
import operator
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec import inspect as msgspec_types

from distilrec.errors import ConfigError, FileMissingError

Count = Annotated[int, Meta(ge=1)]
ZeroOrMore = Annotated[int, Meta(ge=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Part = Annotated[float, Meta(gt=0, lt=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]

BOUNDS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("gt", "more than", operator.gt),
    ("ge", "at least", operator.ge),
    ("lt", "less than", operator.lt),
    ("le", "at most", operator.le),
)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all settings: the ranges of the fields (`Annotated` with `msgspec.Meta`) hold in
    Python as in TOML.

    Raises ConfigError for a value outside its range.
    """

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            for each in value if isinstance(value, tuple) else (value,):
                if isinstance(each, int | float):
                    _check_range(field, each)


def _check_range(field: msgspec.structs.FieldInfo, value: float) -> None:
    """Raise ConfigError for a value, or one of several, that is outside the range of its field."""
    for meta in _ranges(field.type):
        bounds = [
            (words, of, bound)
            for name, words, of in BOUNDS
            if (bound := getattr(meta, name)) is not None
        ]
        if not all(of(value, bound) for _, of, bound in bounds):
            raise ConfigError(
                f"{field.name} is {value}",
                fix="use " + " and ".join(f"{words} {bound:g}" for words, _, bound in bounds),
                parameter=field.name,
            )


def _ranges(kind: Any) -> list[Meta]:
    """Return what `Annotated` says about a type, or about a part of a union."""
    if get_origin(kind) is Annotated:
        return [meta for meta in kind.__metadata__ if isinstance(meta, Meta)]
    return [meta for part in get_args(kind) for meta in _ranges(part)]


T = TypeVar("T")


def read_settings(path: Path | str, kind: type[T], *, fix: str) -> T:
    """Return what a TOML file says, as `kind`. fix: what to do where the file is not there.

    Raises FileMissingError, and ConfigError that names the section, the key and what could be
    there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileMissingError(f"{path} does not exist", fix=fix, file=str(path))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(
            f"{path} is not valid TOML: {problem}", fix="correct the syntax", file=str(path)
        ) from None
    return converted(content, kind, str(path))


def converted(content: object, kind: type[T], source: str) -> T:
    """Return what was read from a file, as `kind`. source: what messages call the file. Raises
    ConfigError.

    A section that may be of several kinds and does not say which is of the kind of its default.
    """
    filled = _with_kinds(content, msgspec_types.type_info(kind))
    try:
        return msgspec.convert(filled, kind)
    except msgspec.ValidationError as problem:
        message, fix = _explained(str(problem), kind, filled, content)
        raise ConfigError(f"{source}: {message}", fix=fix, file=source) from None
    except ConfigError as problem:  # what a class itself checks
        context = {"file": source, **problem.context}
        raise ConfigError(f"{source}: {problem.message}", fix=problem.fix, **context) from None


def _with_kinds(content: Any, kind: Any) -> Any:
    """Return the same content, with the kinds of the defaults in sections that name none."""
    structs = _structs([kind])
    if not isinstance(content, dict) or len(structs) != 1:
        return content
    filled = dict(content)
    for field in structs[0].fields:
        section = filled.get(field.encode_name)
        tag = getattr(type(field.default), "__struct_config__", None)
        if (
            isinstance(section, dict)
            and tag is not None
            and tag.tag_field
            and tag.tag_field not in section
        ):
            filled[field.encode_name] = {tag.tag_field: tag.tag, **section}
        else:
            filled[field.encode_name] = _with_kinds(section, field.type)
    return {name: value for name, value in filled.items() if name in content}


def _explained(problem: str, kind: type, filled: Any, content: Any) -> tuple[str, str]:
    """Return msgspec's sentence, with the path as people write it in TOML, and how to fix it.

    filled: the content with the kinds of the defaults.
    """
    sentence, _, path = problem.partition(" - at `$")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", path)
    for name, number in steps:
        filled, content = _inside(filled, name, number), _inside(content, name, number)
    names, info = [name for name, _ in steps if name], msgspec_types.type_info(kind)
    where, allowed = ".".join(names), _names(info, names, filled)
    unknown = re.search(r"unknown field `(.*)`", sentence)
    if unknown:
        name = unknown[1]
        kind_is_default = isinstance(content, dict) and filled != content
        if kind_is_default and (kinds := _kinds_with(info, names, name)):
            fix = f'set kind = "{kinds[0]}", which has it' + "".join(
                f', or "{other}"' for other in kinds[1:]
            )
            return (
                f"there is no key `{name}`{where and f' in [{where}]'} of the kind that it has by "
                "default",
                fix,
            )
        near = difflib.get_close_matches(name, allowed, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(allowed)}"
        return f"there is no key `{name}`{where and f' in [{where}]'}", fix
    if sentence.startswith("Invalid") and allowed:
        return f"{where} is {filled!r}", f"use one of: {', '.join(allowed)}"
    missing = re.search(r"missing required field `(.*)`", sentence)
    if missing:
        values = _names(info, [*names, missing[1]], None)
        fix = f"set it to one of: {', '.join(values)}" if values else "set it"
        return f"there is no `{missing[1]}`{where and f' in [{where}]'}", fix
    return f"{sentence[:1].lower()}{sentence[1:]}{where and f', in {where}'}", "correct that value"


def _inside(value: Any, name: str, number: str) -> Any:
    """Return what one step into the content of a file leads to; None where that is nothing."""
    if isinstance(value, dict):
        return value.get(name)
    return value[int(number)] if isinstance(value, list) and number.isdigit() else None


def _names(kind: Any, steps: list[str], content: Any) -> list[str]:
    """Return what may stand at the end of these steps: the keys of a section, or the values of a
    key.
    """
    kinds = _at(kind, steps)
    literals = [
        literal
        for literal in _alternatives(kinds)
        if isinstance(literal, msgspec_types.LiteralType)
    ]
    structs = _structs(kinds)
    if isinstance(content, dict):  # of several kinds, the one that is meant
        structs = [
            struct
            for struct in structs
            if struct.tag_field is None or content.get(struct.tag_field) == struct.tag
        ] or structs
    keys = [field.encode_name for struct in structs for field in struct.fields]
    values = [str(value) for literal in literals for value in literal.values]
    return list(dict.fromkeys(values + keys))


def _at(kind: Any, steps: list[str]) -> list[Any]:
    """Return the types that a value at the end of these steps may have."""
    kinds = [kind]
    for step in steps:
        inner: list[Any] = []
        for struct in _structs(kinds):
            if struct.tag_field == step:
                inner.append(msgspec_types.LiteralType((struct.tag,)))
            inner += [field.type for field in struct.fields if field.encode_name == step]
        kinds = inner
    return kinds


def _kinds_with(kind: Any, steps: list[str], key: str) -> list[str]:
    """Return the kinds of a section that have a key."""
    structs = _structs(_at(kind, steps))
    return [
        str(struct.tag)
        for struct in structs
        if struct.tag and key in {field.encode_name for field in struct.fields}
    ]


def _alternatives(kinds: list[Any]) -> list[Any]:
    """Return the types of unions, and what arrays hold, in place of these themselves."""
    found: list[Any] = []
    for kind in kinds:
        match kind:
            case msgspec_types.UnionType():
                found += _alternatives(list(kind.types))
            case msgspec_types.VarTupleType() | msgspec_types.ListType():
                found += _alternatives([kind.item_type])
            case msgspec_types.Metadata():
                found += _alternatives([kind.type])
            case _:
                found.append(kind)
    return found


def _structs(kinds: list[Any]) -> list[msgspec_types.StructType]:
    return [kind for kind in _alternatives(kinds) if isinstance(kind, msgspec_types.StructType)]
