"""Examining a scan as a project reads it, and writing what mends it into ptycho.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.backends import available
from ptycho_tasks.config.document import ConfigFile, parse_config, read_config
from ptycho_tasks.config.layers import NamedScan, convert, merge
from ptycho_tasks.config.scans import read_scans
from ptycho_tasks.config.sections import Config, SourceOptions
from ptycho_tasks.errors import BackendError, ConfigError
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.scans.doctor.examine import Report, examine
from ptycho_tasks.scans.doctor.trials import TryScan
from ptycho_tasks.system.files import write_atomic

RELATIVE = ("source.orientation", "source.centre", "source.crop")
"""Settings that are found beside what is set already, and must not take its place."""


class ProjectSettings(NamedTuple):
    """How a project reads a scan."""

    reading: Mapping[str, Any]
    """See `SourceOptions.reading`."""
    product: Path | None


def find_project_settings(root: Path, scan: Path) -> ProjectSettings | None:
    """How the project at `root` reads a scan; None where it has no such scan, or is none.

    Raises:
        ConfigError: its ptycho.yaml is wrong.
    """
    if not (root / CONFIG_NAME).is_file():
        return None
    file = read_config(root / CONFIG_NAME)
    layers = merge(file)
    if file.data.get("source") is None:
        return None
    named: list[NamedScan | None] = [*read_scans(layers).by_name.values()]
    for one in named or [None]:
        source = convert(merge(file, scan=one), SourceOptions, "source")
        if source.file is not None and _is_same(root / source.file, scan):
            product = None if source.product is None else root / source.product
            follow = tuple(root / folder for folder in source.follow)
            reading = source.reading(lambda text: root / Path(text).expanduser())
            return ProjectSettings({**reading, "follow": follow}, product)
    return None


def _is_same(one: Path, other: Path) -> bool:
    return one.expanduser().resolve() == other.expanduser().resolve()


def check_scan(
    scan: Path, root: Path, project: ProjectSettings | None, *, tries: bool = True
) -> Report:
    """Examine a scan.

    Args:
        scan: its path.
        root: where backends and readers are looked for.
        project: how it is read; None as it is.
        tries: whether quick reconstructions are made.
    """
    reading, product = project or ProjectSettings({}, None)
    try_scan = find_try_scan(root) if tries else None
    return examine(scan, {**reading, "root": root}, product=product, try_scan=try_scan)


def find_try_scan(root: Path) -> TryScan | None:
    """What makes quick reconstructions, of the first backend that can; None if none can."""
    for _, entry in sorted(available(root).items()):
        try:
            backend = entry.load()
        except BackendError:
            continue
        try_scan: TryScan | None = getattr(backend, "try_scan", None)
        if try_scan is not None:
            return try_scan
    return None


def list_lines(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they stand in ptycho.yaml."""
    lines = [f"  {key.partition('.')[2]}: {_show(value)}" for key, value in settings.items()]
    return ["source:", *lines] if lines else []


def _show(value: Any) -> str:
    """A value in YAML, in a line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_show(part)}" for key, part in value.items()) + "}"
    return str(value) if isinstance(value, str) and value.isidentifier() else json.dumps(value)


def write_settings(root: Path, scan: Path, settings: Mapping[str, Any]) -> Path:
    """Write settings of `source` into the ptycho.yaml at `root`; all other lines stay.

    Raises:
        ConfigError: there is none, its `source.file` is not this scan, or the settings do not fit;
            nothing was written.
    """
    path = root / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(f"--write: there is no {path}; run `ptycho-tasks init` first")
    content = path.read_bytes()
    file = parse_config(path, content)
    source = file.data.get("source")
    named = source.get("file") if isinstance(source, dict) else None
    if not isinstance(named, str) or not _is_same(root / named, scan):
        raise ConfigError(
            f"--write: source.file of {file.where('source.file')} is not {scan}; write the lines "
            "where the scan is named"
        )
    for key in RELATIVE:
        if key in settings and _is_set(file, key):
            raise ConfigError(
                f"--write: {key} is set at {file.where(key)} already, and what was found comes on "
                "top of it; put both together by hand"
            )
    text = content.decode("utf-8")
    for key, value in settings.items():
        text = _put(text, path, key, value)
    convert(merge(parse_config(path, text.encode())), Config)
    write_atomic(path, text.encode())
    return path


def _is_set(file: ConfigFile, key: str) -> bool:
    return file.data["source"].get(key.partition(".")[2]) is not None


def _put(text: str, path: Path, key: str, value: Any) -> str:
    """The text with a value at a key of `source`: in its line, in that which holds it commented
    out, or below `file`."""
    file = parse_config(path, text.encode())
    name = key.partition(".")[2]
    lines = text.splitlines(keepends=True)
    first, at = file.lines["source"], file.lines["source.file"]
    if first == at:
        raise ConfigError(
            f"--write: `source` stands in one line at {file.where('source')}; write the lines there"
        )
    starts = (n for n in range(first, len(lines)) if lines[n][:1] not in (" ", "#", "\n", "\r"))
    last = next(starts, len(lines))
    indent = lines[at - 1][: len(lines[at - 1]) - len(lines[at - 1].lstrip())]
    new = f"{indent}{name}: {_show(value)}\n"
    if file.data["source"].get(name) is not None or key in file.lines:
        _, comment, words = lines[file.lines[key] - 1].partition(" #")
        lines[file.lines[key] - 1] = f"{new.rstrip()}{comment}{words}" if comment else new
        return "".join(lines)
    marks = (f"{indent}# {name}:", f"{indent}#{name}:")
    commented = next((n for n in range(first, last) if lines[n].startswith(marks)), None)
    if commented is None:
        if not lines[at - 1].endswith("\n"):
            lines[at - 1] += "\n"
        lines.insert(at, new)
    else:
        lines[commented] = new
    return "".join(lines)
