"""The fields of a section: what is known of each, conversion, messages."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec

from ptycho_tasks.config.document import short
from ptycho_tasks.options import RULES, Section, Stages, default_of


class Fact(NamedTuple):
    """What is known of a key besides its value."""

    affects: Stages
    """The stages whose results it decides."""
    default: Any
    """Its plain default value."""


class Facts(dict[str, Fact]):
    """What is known of every key, by its dotted path."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        """A copy of some facts."""
        super().__init__(facts)
        self.default = functools.cache(lambda key: self.of(key).default)
        self._keys: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def of(self, key: str) -> Fact:
        """What is known of a key; a mapping among the values has keys of its own."""
        while key not in self:
            key = key.rpartition(".")[0]
        return self[key]

    def keys_of(self, stage: str, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some keys that decide the result of a stage."""
        if (stage, keys) not in self._keys:
            self._keys[stage, keys] = tuple(k for k in keys if stage in self.of(k).affects)
        return self._keys[stage, keys]


def facts(kind: type[Section], prefix: str = "") -> dict[str, Fact]:
    """Dotted key path of every field below `kind`, to what is known of it.

    A field that may be a section or null, as `source.simulate`, stands for itself too.
    """
    result: dict[str, Fact] = {}
    for item in msgspec.structs.fields(kind):
        key = f"{prefix}.{item.name}" if prefix else item.name
        metas = [m for m in item.type.__metadata__ if isinstance(m, msgspec.Meta)]
        said = next((m.extra["affects"] for m in metas if m.extra), None)
        nested = next(section_types(item.type), None)
        if nested is None or item.default is None:
            result[key] = Fact(kind.affects if said is None else said, default_of(item))
        if nested is not None:
            result |= facts(nested, key)
    return result


SectionType = TypeVar("SectionType", bound=Section)


def typed(data: Any, kind: type[SectionType], *, strict: bool = True) -> SectionType:
    """Plain values as a section.

    Args:
        data: keys and values.
        kind: the section's type.
        strict: False reads numbers from text, as a command line gives them.

    Raises:
        msgspec.ValidationError: a value does not fit; `fault` explains it.
    """
    section = msgspec.convert(data, kind, strict=strict)
    for key, value in _leaves(msgspec.to_builtins(section)):
        problem = _unfit(value)
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


def _unfit(value: Any) -> str:
    """What makes a value unfit for every setting; empty where nothing does."""
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


def fault(error: msgspec.ValidationError, kind: type[Section], data: Any) -> tuple[str, str]:
    """The dotted key path below `kind` that an error is about, and what is wrong there.

    Args:
        error: raised by `typed`.
        kind: the section's type.
        data: the values that it was given.
    """
    message = re.fullmatch(r"(.*?)(?: - at `\$\.?([^`]*)`)?", str(error), re.DOTALL)
    assert message
    problem, key = message[1], message[2] or ""
    field = re.fullmatch("Object (contains unknown|missing required) field `(.*)`", problem)
    if field is None:
        return key, _expected(problem, _annotation(kind, key)) + _got(data, key)
    names = [f.encode_name for f in msgspec.structs.fields(_section(kind, key))]
    key = f"{key}.{field[2]}" if key else field[2]
    if field[1] == "missing required":
        return key, "must be given"
    close = difflib.get_close_matches(field[2], names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(names)}"
    return key, f"unknown key; {hint}"


def _expected(problem: str, annotation: Any) -> str:
    """msgspec's sentence for people: without its own idea of what was got."""
    if problem.startswith("Invalid enum value"):
        return f"expected one of {', '.join(map(str, choices_of(annotation)))}"
    if problem.startswith("Expected `object`"):
        return "expected a mapping, `key: value` lines"
    for pattern, rule in RULES.items():
        if repr(pattern) in problem:
            return f"expected {rule}"
    return problem[:1].lower() + problem[1:].split(", got `")[0]


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


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of the `Literal` in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    arguments = getattr(annotation, "__args__", ())
    return next(filter(None, map(choices_of, arguments)), ())


def section_types(annotation: Any) -> Iterator[type[Section]]:
    """The `Section` classes in an annotation such as `Annotated[X | None, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from section_types(argument)


def _got(data: Any, key: str) -> str:
    for name, index in re.findall(r"([^.\[\]]+)|\[([0-9]+)\]", key):
        if name and isinstance(data, dict) and name in data:
            data = data[name]
        elif index and isinstance(data, list) and int(index) < len(data):
            data = data[int(index)]
        else:
            return ""
    return "" if isinstance(data, dict) else f", got {short(data)}"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key path to plain value, for every leaf of a section or mapping."""
    return dict(_flat(msgspec.to_builtins(value), prefix))


def _flat(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(plain, dict):
        yield key, plain
        return
    for name, item in plain.items():
        below = f"{key}.{name}" if key else name
        if isinstance(item, dict):
            yield from _flat(item, below)
        else:
            yield below, item


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON-able value: sorted keys, no spaces."""
    plain = msgspec.to_builtins(value)
    return msgspec.json.encode(plain, order="sorted").decode()
