"""Which code decides a stage's result, so that a change of it makes the stage stale.

Two things count. A version, which its author raises when results change: that of the backend,
and one a stage of the core, so that an upgrade that changes no result rebuilds nothing. And,
where someone works on the source itself (an editable install, a project's own backend), what the
source says, without its comments and docstrings.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptycho_tasks.backend import Backend

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class StageCode:
    """The core's code of one stage."""

    version: int
    """Raised when the stage gives other bytes for the same inputs and settings."""
    modules: tuple[str, ...]
    """Modules of the core that decide what the stage gives."""


_READING = ("forward", "hdf5_scan", "npz", "raw_scan", "readers", "scan")
STAGE_CODE = {
    "source": StageCode(1, (*_READING, "simulate")),
    "fixture": StageCode(1, (*_READING, "fixture")),
    "train": StageCode(1, ("bundle", "forward", "npz", "scan")),
    "infer": StageCode(1, (*_READING, "metrics", "pictures", "product")),
}


def versions(stage: str, backend: Backend | None = None) -> dict[str, str | int]:
    """The versions that count for a stage, by the name that the user is told."""
    result: dict[str, str | int] = {f"stage {stage}": STAGE_CODE[stage].version}
    if backend is not None:
        result[f"backend {backend.name}"] = backend.version
    return result


def core_files(stage: str) -> list[Path]:
    """The source files of the core that count for a stage; none where the core is installed."""
    if is_installed(_HERE):
        return []
    return [_HERE / f"{name}.py" for name in STAGE_CODE[stage].modules]


def backend_files(backend: object, local: Path | None, root: Path) -> list[Path]:
    """The source files of a backend that count; none where it is installed.

    Args:
        backend: as loaded.
        local: its file, for a backend in a project's own folder.
        root: the project's folder; modules there that a local backend imports count too.
    """
    if local is not None:
        return sorted(_with_imports(local, root))
    package = type(backend).__module__.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None or is_installed(Path(file)):
        return []
    folder = Path(file).parent
    return sorted(folder.rglob("*.py")) if Path(file).name == "__init__.py" else [Path(file)]


@functools.cache
def is_installed(path: Path) -> bool:
    """Whether a file lies where pip installs: only an upgrade changes it there."""
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return any(path.is_relative_to(folder) for folder in folders if folder)


def source_digest(path: Path) -> str:
    """sha256 of what a Python file says: comments, docstrings and layout do not count.

    A file that is no valid Python counts with its bytes.
    """
    data = path.read_bytes()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return hashlib.sha256(data).hexdigest()
    said = _WithoutTexts().visit(tree)
    return hashlib.sha256(ast.unparse(said).encode()).hexdigest()


class _WithoutTexts(ast.NodeTransformer):
    """Removes docstrings, those of attributes too: any text that stands alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node


def _with_imports(file: Path, root: Path) -> set[Path]:
    """A file, and the modules of the project that it imports, and those that they import."""
    found, left = {file}, [file]
    while left:
        for name in _imported(left.pop()):
            parts = name.split(".")
            for place in (root, root / "backends"):
                for path in (
                    place.joinpath(*parts).with_suffix(".py"),
                    place.joinpath(*parts, "__init__.py"),
                ):
                    if path.is_file() and path not in found:
                        found.add(path)
                        left.append(path)
    return found


def _imported(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
