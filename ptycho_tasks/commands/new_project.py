"""Starting a project, and describing its configuration to editors."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ptycho_tasks.backends import available, find_backend, sections_of
from ptycho_tasks.commands.template import make_example, make_schema
from ptycho_tasks.config.document import parse_config, shorten
from ptycho_tasks.config.dodo import DODO
from ptycho_tasks.config.gitignore import extend_gitignore, list_generated
from ptycho_tasks.config.layers import convert, merge
from ptycho_tasks.config.sections import Config
from ptycho_tasks.errors import BackendError, ConfigError
from ptycho_tasks.layout import CONFIG_NAME, DODO_NAME, SCHEMA_NAME
from ptycho_tasks.options import NAME_PATTERN, NAME_RULE, Section
from ptycho_tasks.system.files import write_files


def init_project(
    folder: Path, *, source: Path | None = None, backend: str = "unrolled", name: str | None = None
) -> list[Path]:
    """Write ptycho.yaml, dodo.py, the JSON Schema, and what git is to ignore into `folder`; gives
    their paths.

    Args:
        folder: the project's folder, made if it is not there.
        source: the scan to read; None simulates one.
        backend: the backend to name.
        name: names the project's files; None takes the scan's.

    Raises:
        ConfigError: one of the files is already there, the source is missing, the name is none,
            or the backend is unknown; nothing was written.
        FileWriteError: the folder cannot be written; none of the files is there.
    """
    folder = folder.absolute()
    for option, text in (("--name", name), ("--backend", backend)):
        if text is not None and not re.fullmatch(NAME_PATTERN, text):
            raise ConfigError(f"{option}: expected {NAME_RULE}, got {shorten(text)}")
    backend_types = sections_of(find_backend(backend, folder).load())
    values: dict[str, Any] = {"backend": backend, "name": name or _make_name(source)}
    if source is None:
        values["source.simulate"] = None
    elif source.is_file():
        values["source.file"] = _scan_path(folder, source.absolute())
        if source.absolute().resolve() == (folder / "fixtures" / f"{values['name']}.npz").resolve():
            values["name"] += "_cut"  # else the fixture would take the scan's place
    else:
        raise ConfigError(f"--source: there is no file {source}; correct the path")
    contents = {
        CONFIG_NAME: make_example(values, backend_types),
        DODO_NAME: DODO,
        SCHEMA_NAME: json.dumps(project_schema(folder), indent=1) + "\n",
    }
    for file_name in contents:
        if os.path.lexists(folder / file_name):
            raise ConfigError(f"{folder / file_name} is already there; nothing was written")
    # What `doit` would refuse, as an odd path of the scan, must not be written.
    convert(merge(parse_config(folder / CONFIG_NAME, contents[CONFIG_NAME].encode())), Config)
    files = {folder / file_name: text.encode() for file_name, text in contents.items()}
    files |= extend_gitignore(folder, list_generated(str(values.get("source.file", ""))))
    write_files(files)
    return list(files)


def project_schema(root: Path) -> dict[str, Any]:
    """The JSON Schema of ptycho.yaml with the options of every backend that loads at `root`."""
    types: dict[str, dict[str, type[Section]]] = {}
    for name, entry in available(root).items():
        try:
            types[name] = sections_of(entry.load())
        except BackendError:
            continue
    return make_schema(types)


def _make_name(source: Path | None) -> str:
    if source is None:
        return "simulated"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", source.name.split(".")[0]).lstrip("_.-")[:90] or "scan"


def _scan_path(folder: Path, source: Path) -> str:
    """How the project names a scan: relative for a scan in its folder, else absolute."""
    return str(source.relative_to(folder)) if source.is_relative_to(folder) else os.fspath(source)
