"""What `ptycho-tasks init` writes, and the JSON Schema for editors: both made from the types."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ptycho_tasks.config.fields import section_types
from ptycho_tasks.config.sections import Config
from ptycho_tasks.evidence.options import EvidenceOptions
from ptycho_tasks.layout import CONFIG_NAME, SCHEMA_NAME
from ptycho_tasks.options import Section, default_of, description_of


def make_example(values: Mapping[str, Any], backend_types: Mapping[str, type[Section]]) -> str:
    """A ptycho.yaml with `values` set, and every other key commented out at its default.

    Args:
        values: dotted key path to value.
        backend_types: the types of the sections that the backend decides: `training`, `execution`.
    """
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_NAME}",
        f"# {CONFIG_NAME}: every key but `source` has a default, shown commented out.",
        "# Then: doit list, doit train, doit infer.",
        "",
        *_section(Config, values, backend_types, "", 0),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(
    kind: type[Section],
    values: Mapping[str, Any],
    backend_types: Mapping[str, type[Section]],
    prefix: str,
    depth: int,
) -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        key = f"{prefix}{field.name}"
        nested = backend_types.get(key) or next(section_types(field.type), None)
        yield from _comment_lines(field.type, depth)
        if nested is not None and (depth == 0 or _has_key_below(values, key)):
            yield f"{'  ' * depth}{field.name}:"
            yield from _section(nested, values, backend_types, f"{key}.", depth + 1)
            if depth == 0:
                yield ""
            continue
        mark = "" if key in values else "# "
        value = values.get(key, msgspec.to_builtins(default_of(field)))
        yield f"{'  ' * depth}{mark}{field.name}: {json.dumps(value)}"


def _comment_lines(annotation: Any, depth: int) -> list[str]:
    return textwrap.wrap(
        description_of(annotation),
        96,
        initial_indent="  " * depth + "# ",
        subsequent_indent="  " * depth + "#   ",
    )


def _has_key_below(values: Mapping[str, Any], key: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in values)


def make_schema(types_by_backend: Mapping[str, Mapping[str, type[Section]]]) -> dict[str, Any]:
    """The JSON Schema of ptycho.yaml.

    Args:
        types_by_backend: by name of each backend that can be loaded, the types of the sections that
            it decides; they are checked against those of the one that `backend` names.
    """
    names = sorted(types_by_backend)
    kinds = [kind for name in names for kind in types_by_backend[name].values()]
    references, components = msgspec.json.schema_components([Config, EvidenceOptions, *kinds])
    reference_by_kind = dict(zip(kinds, references[2:], strict=True))
    result: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": _with_empty_sections(components),
        **references[0],
    }
    config = components[Config.__name__]
    default = config["properties"]["backend"]["default"]
    result["allOf"] = [
        {
            "if": {
                "properties": {"backend": {"const": name}},
                # Without the key, the default backend's options apply.
                "required": [] if name == default else ["backend"],
            },
            "then": {
                "properties": {
                    section: {"anyOf": [reference_by_kind[kind], {"type": "null"}]}
                    for section, kind in types_by_backend[name].items()
                }
            },
        }
        for name in names
    ]
    for section in ("training", "execution"):
        whole = config["properties"][section]
        config["properties"][section] = {"description": whole["description"]}
    whole = config["properties"]["evidence"]
    config["properties"]["evidence"] = {
        "description": whole["description"],
        "anyOf": [references[1], {"type": "null"}],
    }
    return result


def _with_empty_sections(components: dict[str, Any]) -> dict[str, Any]:
    """Allow null for a section: with all lines commented out, a section is null."""
    for name, value in components[Config.__name__]["properties"].items():
        if name in {"name", "source", "backend", "training", "execution", "evidence"}:
            continue
        if name == "refine":
            value["type"] = ["object", "null"]
            continue
        reference = {key: value.pop(key) for key in ("$ref", "allOf") if key in value}
        value["anyOf"] = [reference, {"type": "null"}]
    return components
