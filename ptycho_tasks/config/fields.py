"""The fields of a section: conversion of plain values, and messages about wrong ones."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from ptycho_tasks.config.document import shorten
from ptycho_tasks.options import RULES, Section

SectionType = TypeVar("SectionType", bound=Section)


def make_section(data: Any, kind: type[SectionType], *, strict: bool = True) -> SectionType:
    """Make a section from plain values.

    Args:
        data: keys and values.
        kind: the section's type.
        strict: False reads numbers from text, as a command line gives them.

    Raises:
        msgspec.ValidationError: a value does not fit; `explain_fault` explains it.
    """
    section = msgspec.convert(data, kind, strict=strict)
    for key, value in _leaves(msgspec.to_builtins(section)):
        problem = _find_problem(value)
        if problem:
            raise msgspec.ValidationError(f"{problem} - at `${key}`")
    return section


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value


def _find_problem(value: Any) -> str:
    """The reason why a value fits no setting at all; empty if there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "Expected a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "Expected an integer of at most 64 bits"
    if not isinstance(value, str) or (value.isascii() and value.isalnum() and len(value) < 100):
        return ""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        return "Expected text without control characters"
    if any(0xD800 <= ord(c) < 0xE000 for c in value):
        return "Expected text in UTF-8"
    if max(len(part.encode()) for part in value.split("/")) > 255:
        return "Expected a path whose parts have at most 255 bytes, as files' names must"
    return ""


def explain_fault(
    error: msgspec.ValidationError, kind: type[Section], data: Any
) -> tuple[str, str]:
    """Explain an error of `make_section`: the dotted key path below `kind`, and what is wrong.

    Args:
        error: raised by `make_section`.
        kind: the section's type.
        data: the values that it was given.
    """
    message = re.fullmatch(r"(.*?)(?: - at `\$\.?([^`]*)`)?", str(error), re.DOTALL)
    assert message
    problem, key = message[1], message[2] or ""
    field = re.fullmatch("Object (contains unknown|missing required) field `(.*)`", problem)
    if field is None:
        return key, _describe_expected(problem, _annotation(kind, key)) + _describe_value(data, key)
    names = [f.encode_name for f in msgspec.structs.fields(_section(kind, key))]
    key = f"{key}.{field[2]}" if key else field[2]
    if field[1] == "missing required":
        return key, "must be given"
    close = difflib.get_close_matches(field[2], names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(names)}"
    return key, f"unknown key; {hint}"


def _describe_expected(problem: str, annotation: Any) -> str:
    """Say what was expected, from a sentence of msgspec."""
    choices = list_choices(annotation)
    is_number = choices and problem.startswith(("Expected `int | str`", "Expected `float | str`"))
    if is_number or problem.startswith("Invalid enum value"):
        return _describe_choices(choices, annotation)
    if problem.startswith("Expected `object`"):
        return "expected a mapping, `key: value` lines"
    for pattern, rule in RULES.items():
        if repr(pattern) in problem:
            return f"expected {rule}"
    return problem[:1].lower() + problem[1:].split(", got `")[0]


def _describe_choices(choices: tuple[Any, ...], annotation: Any) -> str:
    words = f"{'one of ' if len(choices) > 1 else ''}{', '.join(map(str, choices))}"
    kinds = [*_list_members(annotation)]
    number = " or a number" if float in kinds else " or a whole number" if int in kinds else ""
    return f"expected {words}{number}"


def _list_members(annotation: Any) -> Iterator[Any]:
    """What a value of a union may be, without the limits of each."""
    if get_origin(annotation) is Annotated:
        yield from _list_members(get_args(annotation)[0])
    elif isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        for one in get_args(annotation):
            yield from _list_members(one)
    else:
        yield annotation


def _annotation(kind: type[Section], key: str) -> Any:
    """The annotation of the field at a dotted path below `kind`."""
    annotation: Any = kind
    for part in filter(None, re.sub(r"\[[^]]*\]", "", key).split(".")):
        section = next(section_types(annotation), None)
        fields = () if section is None else msgspec.structs.fields(section)
        # Within a mapping of the user's own there is nothing more to know.
        annotation = next((f.type for f in fields if f.encode_name == part), annotation)
    return annotation


def _section(kind: type[Section], key: str) -> type[Section]:
    return next(section_types(_annotation(kind, key)))


def list_choices(annotation: Any) -> tuple[Any, ...]:
    """The values of the `Literal` in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    arguments = getattr(annotation, "__args__", ())
    return next(filter(None, map(list_choices, arguments)), ())


def section_types(annotation: Any) -> Iterator[type[Section]]:
    """The `Section` classes in an annotation such as `Annotated[X | None, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from section_types(argument)


def _describe_value(data: Any, key: str) -> str:
    for name, index in re.findall(r"([^.\[\]]+)|\[([0-9]+)\]", key):
        if name and isinstance(data, dict) and name in data:
            data = data[name]
        elif index and isinstance(data, list) and int(index) < len(data):
            data = data[int(index)]
        else:
            return ""
    return "" if isinstance(data, dict) else f", got {shorten(data)}"


WHOLE = "source.files"
"""A key that is one value, also where it holds a mapping: a variant gives it whole."""


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key path to plain value, for every leaf of a section or mapping."""
    return dict(_flat(msgspec.to_builtins(value), prefix))


def _flat(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(plain, dict):
        yield key, plain
        return
    for name, item in plain.items():
        below = f"{key}.{name}" if key else name
        if isinstance(item, dict) and below != WHOLE:
            yield from _flat(item, below)
        else:
            yield below, item


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON-able value: sorted keys, no spaces."""
    plain = msgspec.to_builtins(value)
    return msgspec.json.encode(plain, order="sorted").decode()
