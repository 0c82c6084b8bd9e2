"""Layers of settings, one over the other: defaults, ptycho.yaml, a variant, flags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from ptycho_tasks.config.document import ConfigFile
from ptycho_tasks.config.fields import SectionType, explain_fault, flatten, make_section
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import Section


@dataclass(frozen=True)
class Variant:
    """One of several trainings and reconstructions that a ptycho.yaml asks for."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key path to value, laid over the file's own."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Dotted key path to `ptycho.yaml:LINE`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Those overrides that are not what the file says without the variant."""


DEFAULT_VARIANT = Variant("default")
"""What there is where a ptycho.yaml asks for no variants."""


@dataclass(frozen=True)
class NamedScan:
    """One of several scans that a ptycho.yaml names."""

    name: str
    settings: Mapping[str, Any]
    """Key of `source` to value; they win over those that all scans share."""
    origins: Mapping[str, str]
    """Dotted key path to `ptycho.yaml:LINE`."""


@dataclass(frozen=True)
class Layers:
    """Values from ptycho.yaml, the command line and overrides, merged, with their origins."""

    file: ConfigFile
    data: dict[str, Any]
    origins: dict[str, str]
    """Dotted key path to `override`, `command line` or `ptycho.yaml:LINE`."""
    variant: Variant
    flags: Mapping[str, str] = field(default_factory=dict)
    """Dotted key path to the flag that set it."""
    scan: NamedScan | None = None
    """The one that `source` is of, where ptycho.yaml names several."""

    def where(self, key: str) -> str:
        """The origin to name in a message about `key`."""
        changed = self._find_override(key)
        if changed and key not in self.variant.overrides:
            return self.variant.origins[changed]
        return self.origins.get(key) or self.file.where(key)

    def find_flag(self, section: str, problem: str) -> str:
        """The flag that set a key of `section` that `problem` mentions; empty if no flag did."""
        keys = (key for key in self.flags if key.startswith(f"{section}."))
        mentioned = (key for key in keys if re.search(rf"\b{key.rpartition('.')[2]}\b", problem))
        return next((self.flags[key] for key in mentioned), "")

    def describe_variant(self, key: str) -> str:
        """The variant's name for a message about `key`, if the variant changes it; else empty."""
        return f"variant `{self.variant.name}`" if self._find_override(key) else ""

    def describe_scan(self, key: str) -> str:
        """The scan's name for a message about `key`, if the scan sets it itself; else empty."""
        return f"scan `{self.scan.name}`" if self.scan and key in self.scan.origins else ""

    def refuse(self, key: str, problem: str) -> ConfigError:
        """The error that says what is wrong with the value of `key`, and where that stands."""
        where = self.find_flag(key, problem) or self.where(key)
        whose = self.describe_variant(key) or self.describe_scan(key)
        return ConfigError(": ".join(part for part in (where, whose, key, problem) if part))

    def list_origins(self, keys: Iterable[str]) -> dict[str, str]:
        """The origin of each key; `default` for a key that nobody set."""
        return {key: self.origins.get(key, "default") for key in keys}

    def without(self, key: str) -> Layers:
        """The same but for one key."""
        *parents, last = key.split(".")
        data = section = dict(self.data)
        for parent in parents:
            section[parent] = section = dict(section[parent])
        del section[last]
        return replace(self, data=data)

    def _find_override(self, key: str) -> str:
        """The override that changes `key`, below it or above it; empty where nothing."""
        key = key.replace("[", ".[")
        for name in self.variant.overrides:
            # Another backend has other options.
            for other in (name, *(["training", "execution"] if name == "backend" else [])):
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                    return name
        return ""


def merge(
    file: ConfigFile,
    variant: Variant = DEFAULT_VARIANT,
    command_line: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    scan: NamedScan | None = None,
) -> Layers:
    """Lay values over those of a file: a scan's own, then a variant's, then the command line's,
    then overrides.

    Args:
        file: ptycho.yaml as read.
        variant: one of those that the file asks for.
        command_line: dotted key path to value.
        overrides: likewise.
        flags: dotted key path to its name on the command line, for messages.
        scan: one of those that the file names; then `source` is of this one alone.
    """
    # One of a thousand variants must not carry a copy of them all; evidence is of none.
    left_out = ("evidence",) if variant is DEFAULT_VARIANT else ("evidence", "matrix", "variants")
    data = {key: value for key, value in file.data.items() if key not in left_out}
    origins = {**file.origins, **(scan.origins if scan else {}), **variant.origins}
    changes = dict(variant.overrides)
    if scan is not None:
        data["source"] = {**changes.pop("source", data["source"]), **scan.settings}
    for key, value in changes.items():
        _set_value(data, key, value)
    for values, origin in ((command_line, "command line"), (overrides, "override")):
        for key, value in (values or {}).items():
            _set_value(data, key, value)
            origins[key] = origin
    if scan is not None:
        del data["source"]["files"]  # a copy of its own
    set_by = {key: flag for key, flag in (flags or {}).items() if key in (command_line or {})}
    return Layers(file, _with_empty_sections(data), origins | set_by, variant, set_by, scan)


def _set_value(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a value. Sections on the way are copied, since variants share them."""
    *parents, last = key.split(".")
    for parent in parents:
        child = data.get(parent)
        data[parent] = dict(child) if isinstance(child, dict) else {}
        data = data[parent]
    data[last] = value


def _with_empty_sections(data: dict[str, Any]) -> dict[str, Any]:
    """A section of which every line is commented out stands for its defaults, not for null."""
    for name, value in data.items():
        if value is None and name not in {"name", "backend", "store"}:
            data[name] = [] if name == "variants" else {}
    source = data.get("source")
    if isinstance(source, dict) and "simulate" in source and not _names_files(source):
        simulate = source["simulate"]
        data["source"] = {**source, "simulate": {} if simulate is None else simulate}
    return data


def _names_files(source: Mapping[str, Any]) -> bool:
    return any(source.get(key) is not None for key in ("file", "files"))


def convert(
    layers: Layers, kind: type[SectionType], prefix: str = "", owner: str = ""
) -> SectionType:
    """The typed section at `prefix` of the merged values; `owner` says whose it is, for messages.

    Raises:
        ConfigError: one line with file and line (or other origin), key path, and what was
            expected.
    """
    data: Any = layers.data.get(prefix, {}) if prefix else layers.data
    try:
        return make_section(data, kind)
    except msgspec.ValidationError as error:
        key, problem = explain_fault(error, kind, data)
        key = ".".join(part for part in (prefix, key) if part)
        if owner:
            problem = problem.replace("unknown key;", f"{owner} does not know this key;", 1)
        raise layers.refuse(key, problem) from error


_MOST_SECTIONS = 1000
_sections: dict[tuple[type[Section], str, str], tuple[Any, Mapping[str, Any]]] = {}


def convert_once(
    layers: Layers, kind: type[SectionType], prefix: str = "", owner: str = ""
) -> tuple[SectionType, Mapping[str, Any]]:
    """As `convert`, and the section as `flatten` gives it. Answers are kept: a thousand variants
    share most of their sections."""
    data = layers.data.get(prefix, {}) if prefix else layers.data
    key = kind, prefix, repr(data)
    if key not in _sections:
        if len(_sections) >= _MOST_SECTIONS:
            _sections.clear()
        section = convert(layers, kind, prefix, owner)
        _sections[key] = section, flatten(section, prefix)
    return _sections[key]
