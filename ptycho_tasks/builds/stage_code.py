"""Which code decides a stage's result, so that a change of it makes the stage stale.

Two things count. A version, which its author raises when results change: that of the backend,
and one a stage of the core, so that an upgrade that changes no result rebuilds nothing. And,
where someone works on the source itself (an editable install, a project's own backend), what the
source says, without its comments and docstrings.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tasks import backends
from ptycho_tasks.builds.identity import PROJECT_CODE
from ptycho_tasks.scans import recognition
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.files import file_stamp
from ptycho_tasks.system.plugins import LOCAL_MODULE, list_local_files
from ptycho_tasks.system.sources import is_installed, list_statements

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend
    from ptycho_tasks.scans.recognition import ReaderEntry


_HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class StageCode:
    """The core's code of one stage."""

    version: int
    """Raised when the stage gives other bytes for the same inputs and settings."""
    modules: tuple[str, ...]
    """Modules of the core that decide what the stage gives, as paths in the package."""


_READING = (
    "builds/inputs",
    "builds/stages",
    "scan",
    "scans/amplitudes",
    "scans/bad_pixels",
    "scans/content",
    "scans/conversion",
    "scans/cropping",
    "scans/frame_stack",
    "scans/hdf5_scan",
    "scans/hdf5_values",
    "scans/illumination",
    "scans/linked_files",
    "scans/mapping",
    "scans/masking",
    "scans/nexus_beam",
    "scans/npz",
    "scans/npz_scan",
    "scans/own_readers",
    "scans/raw_positions",
    "scans/raw_scan",
    "scans/readers",
    "scans/recognition",
    "scans/shaping",
    "system/large_arrays",
)
_FORMATS = (
    "scans/any_file",
    "scans/any_hdf5",
    "scans/any_layout",
    "scans/any_npz",
    "scans/cxi_product",
    "scans/fold_slice_scan",
    "scans/positions_file",
    "scans/probe_file",
    "scans/product_scan",
    "scans/ptylab_scan",
    "scans/ptypy_scan",
    "scans/stacks",
    "scans/tike_scan",
)
"""Modules that read what only some scans are; they count for the stages that read scans."""
_RESULT = (
    *_READING,
    "backend",
    "builds/identity",
    "builds/outputs",
    "physics/displacement",
    "physics/forward",
    "physics/deviance",
    "physics/metrics",
    "physics/truth",
    "results/bundle",
    "results/nexus",
    "results/palette",
    "results/paper",
    "results/pictures",
    "results/product",
    "scans/fixture",
)
STAGE_CODE = {
    "source": StageCode(4, (*_READING, "options", "physics/forward", "physics/simulate")),
    "fixture": StageCode(
        5, (*_READING, "builds/identity", "builds/outputs", "scans/cutting", "scans/fixture")
    ),
    "train": StageCode(
        1,
        (
            "backend",
            "builds/identity",
            "builds/inputs",
            "builds/outputs",
            "builds/stages",
            "config/payload",
            "results/bundle",
            "scan",
            "scans/amplitudes",
            "scans/bad_pixels",
            "scans/conversion",
            "scans/cropping",
            "scans/fixture",
            "scans/frame_stack",
            "scans/illumination",
            "scans/mapping",
            "scans/masking",
            "scans/npz",
            "scans/npz_scan",
            "scans/own_readers",
            "scans/raw_positions",
            "scans/raw_scan",
            "scans/readers",
            "scans/recognition",
            "scans/shaping",
            "system/large_arrays",
        ),
    ),
    "infer": StageCode(8, _RESULT),
    "refine": StageCode(7, tuple(name for name in _RESULT if name != "results/bundle")),
}
BESIDE = frozenset({
    "backends", "builds/cost", "builds/database", "builds/digests", "builds/messages",
    "builds/live", "builds/notes", "builds/progress", "builds/stage_code", "builds/state",
    "builds/turns", "config/document", "config/factories", "config/facts", "config/fields",
    "config/layers", "config/payload", "config/sections", "config/variants", "errors", "layout",
    "options",
    "results/folder_record", "results/ownership", "results/work_folders", "scans/compression",
    "scans/hdf5_content", "scans/plausibility", "system/ahead", "system/clock", "system/files",
    "system/memory", "system/plugins", "system/processes", "system/program", "system/sources",
    "system/terminal",
})  # fmt: skip
"""Modules that stages reach too, but that decide whether, where and how they run, and not what
they give: what the settings come to is among the settings."""


READS_SCANS = frozenset(STAGE_CODE) - {"train"}
"""The stages that read a scan; what is learned from are fixtures."""


def list_versions(
    stage: str, backend: Backend | None = None, reader: ReaderEntry | None = None
) -> dict[str, str | int]:
    """The versions that count for a stage, by the name that the user is told.

    Args:
        stage: its name.
        backend: of `acting_backend`.
        reader: the one that `source.reader` names. One that is recognised is known only when a
            scan is read.
    """
    result: dict[str, str | int] = {f"stage {stage}": STAGE_CODE[stage].version}
    if backend is not None:
        result[f"backend {backend.name}"] = backend.version
    if reader is not None and stage in READS_SCANS and not reader.is_ours and not reader.source:
        result[f"reader {reader.name}"] = reader.origin
    return result


def acting_backend(stage: str, backend: Backend) -> Backend | None:
    """The backend that has a part in what a stage makes; before the training, none has."""
    return None if stage in ("source", "fixture") else backend


Sources = dict[str, Path]
"""Source files by name: `project/backends/mine.py`, or a package and its file."""


def list_sources(
    stage: str,
    acting: Backend | None,
    local: Path | None,
    root: Path,
    reader: ReaderEntry | None = None,
) -> Sources:
    """The source files that count for a stage.

    Args:
        stage: its name.
        acting: of `acting_backend`.
        local: the backend's file, as for `list_backend_sources`.
        root: the project's folder.
        reader: the one that `source.reader` names; None where it is recognised.
    """
    of_backend = {} if acting is None else list_backend_sources(acting, local, root)
    of_readers = list_reader_sources(root, reader) if stage in READS_SCANS else {}
    return {**list_core_sources(stage), **of_readers, **of_backend}


def list_reader_sources(root: Path, reader: ReaderEntry | None = None) -> Sources:
    """The source files of a project's own readers, and the modules of the project that they
    import; of all of them where none is named, as each has a say in which one reads a file."""
    files = list_local_files(recognition.KIND, root)
    if reader is not None:
        files = [path for path in files if path == reader.source]
    found = {path for file in files for path in _with_imports(file, root)}
    return _name_project_files(found, root)


def _name_project_files(files: Iterable[Path], root: Path) -> Sources:
    return {f"{PROJECT_CODE}/{file.relative_to(root).as_posix()}": file for file in sorted(files)}


def list_core_sources(stage: str) -> Sources:
    """The source files of the core that count for a stage; none where the core is installed."""
    if is_installed(_HERE):
        return {}
    modules = (*STAGE_CODE[stage].modules, *(_FORMATS if stage in READS_SCANS else ()))
    return {f"ptycho_tasks/{n}.py": _HERE / f"{n}.py" for n in modules}


def list_backend_sources(backend: object, local: Path | None, root: Path) -> Sources:
    """The source files of a backend that count, and those of the core that it imports; none of
    what is installed.

    Args:
        backend: as loaded.
        local: its file, for a backend in a project's own folder.
        root: the project's folder; modules there that a local backend imports count too.
    """
    if local is not None:
        files = _with_imports(local, root) | _imported_now(root)
        named = _name_project_files(files, root)
        return {**named, **_core_imports(tuple(named.values()))}
    package = type(backend).__module__.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        return {}
    folder = Path(file).parent
    found = sorted(folder.rglob("*.py")) if Path(file).name == "__init__.py" else [Path(file)]
    named = {f"{package}/{path.relative_to(folder).as_posix()}": path for path in found}
    return {**({} if is_installed(Path(file)) else named), **_core_imports(tuple(found))}


@cached
def _core_imports(files: tuple[Path, ...]) -> Sources:
    """The core's modules that files of a backend import; none where the core is installed."""
    if is_installed(_HERE):
        return {}
    found = {path for file in files for path in _imported(file, _HERE.parent)}
    named = {path.relative_to(_HERE): path for path in sorted(found) if _HERE in path.parents}
    return {
        f"ptycho_tasks/{name.as_posix()}": path
        for name, path in named.items()
        if name.stem != "__init__" and name.with_suffix("").as_posix() not in BESIDE
    }


def _with_imports(file: Path, root: Path) -> set[Path]:
    """A file, and the modules of the project that it imports, and those that they import."""
    found, left = {file}, [file]
    while left:
        for path in _imported(left.pop(), root):
            if path not in found:
                found.add(path)
                left.append(path)
    return found


def _imported(file: Path, root: Path) -> Iterator[Path]:
    """The files of the project that the import statements of a file run."""
    stamp = file_stamp(file)
    for level, parts in () if stamp is None else _parse_imports(file, stamp):
        places = (file.parents[level - 1],) if level else _folders(root)
        yield from _files_of(places, parts)


@functools.cache
def _parse_imports(file: Path, stamp: object) -> frozenset[tuple[int, tuple[str, ...]]]:
    """What the import statements of a file name, with their numbers of leading dots. Kept for the
    file's stamp: a process that watches asks for each scan again."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return frozenset()
    found = set()
    for node in list_statements(tree):
        if isinstance(node, ast.Import):
            found |= {(0, tuple(alias.name.split("."))) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            found |= {(node.level, (*parts, alias.name)) for alias in node.names}
    return frozenset(found)


def _folders(root: Path) -> tuple[Path, ...]:
    """Where the modules of a project lie."""
    return (root, root / backends.KIND.folder, root / recognition.KIND.folder)


@cached
def _files_of(places: tuple[Path, ...], parts: tuple[str, ...]) -> tuple[Path, ...]:
    """The file of a module, and those of the packages that it lies in."""
    found: list[Path] = []
    for path in places:
        for part in (*parts, ""):
            files, may_hold_more = _look_at(path)
            found += files
            if not may_hold_more:
                break
            path /= part
    return tuple(found)


@cached
def _look_at(path: Path) -> tuple[tuple[Path, ...], bool]:
    """The files of a module, or of a package; and whether there may be modules below."""
    candidates = path / "__init__.py", path.with_suffix(".py")
    return tuple(file for file in candidates if file.is_file()), path.is_dir()


def _imported_now(root: Path) -> set[Path]:
    """The modules of the project that this process has imported, by whatever way; backends that
    were looked up aside."""
    # There may be thousands, nearly all elsewhere, and texts are compared faster than paths.
    part = root.name
    named = [(name, getattr(module, "__file__", None)) for name, module in [*sys.modules.items()]]
    files = {
        Path(text)
        for name, text in named
        if isinstance(text, str) and part in text and not name.startswith(LOCAL_MODULE)
    }
    return {
        file
        for file in files
        if file.is_relative_to(root)
        and file.suffix == ".py"
        and file != root / "dodo.py"
        and "site-packages" not in file.parts
    }
