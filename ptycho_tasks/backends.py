"""Finding backends: installed ones by entry point, a project's own in its `backends/` folder.

A backend is looked up by name and imported only when used.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ptycho_tasks.backend import Backend
from ptycho_tasks.errors import BackendError
from ptycho_tasks.options import TrainingOptions
from ptycho_tasks.reporter import Stopped

GROUP = "ptycho_tasks.backends"
FOLDER = "backends"
OBJECT = "backend"
"""The name that a one-file local backend must define."""


@dataclass(frozen=True)
class BackendEntry:
    """A backend that could be loaded."""

    name: str
    origin: str
    """The distribution and its version, or the local file."""
    importer: Callable[[], Any]
    source: Path | None = None
    """The file of a local backend."""

    def load(self) -> Backend:
        """Import the backend and check that it is one.

        Raises:
            BackendError: the import failed (the missing module is named), or something that a
                backend must have is missing (named too).
        """
        try:
            backend = self.importer()
            # A property runs code of the backend, too.
            members = {key: getattr(backend, key, None) for key in _MEMBERS}
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            raise BackendError(
                f"backend `{self.name}` ({self.origin}) cannot be loaded: "
                f"{import_failure(error, self.source)}"
            ) from error
        self._refuse(backend, members)
        return backend  # type: ignore[no-any-return]

    def _refuse(self, backend: object, members: Mapping[str, Any]) -> None:
        """Refuse what is no backend."""
        wrong = [key for key, fits in _MEMBERS.items() if not fits(members[key])]
        said = f"backend `{self.name}` ({self.origin})"
        if wrong:
            raise BackendError(
                f"{said} lacks or has wrong: {', '.join(wrong)}; a backend has a `name` and "
                "`version` (str), an `options_type` (a TrainingOptions class), and the methods "
                "`train` and `infer`"
            )
        if isinstance(backend, type):
            raise BackendError(f"{said} is a class; give an instance of it")
        if members["name"] != self.name:
            raise BackendError(f"{said} calls itself `{members['name']}`; the two names must agree")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_MEMBERS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "version": _is_text,
    "options_type": lambda value: isinstance(value, type) and issubclass(value, TrainingOptions),
    "train": callable,
    "infer": callable,
}
"""What a backend must have, and what each must be."""


def available(root: Path) -> dict[str, BackendEntry]:
    """Every backend that a project at `root` can name, by name; none is imported.

    Raises:
        BackendError: one name stands for two backends.
    """
    found: dict[str, BackendEntry] = {}
    installed = [_installed(point) for point in entry_points(group=GROUP)]
    files = sorted((root / FOLDER).glob("*.py")) if (root / FOLDER).is_dir() else []
    local = [_local(path, root) for path in files if not path.name.startswith("_")]
    for entry in [*installed, *local]:
        other = found.setdefault(entry.name, entry)
        if other.origin != entry.origin:
            raise BackendError(
                f"backend `{entry.name}` is there twice: {other.origin} and {entry.origin}; "
                "rename or remove one"
            )
    return found


def find_backend(name: str, root: Path) -> BackendEntry:
    """The backend called `name`, not yet imported.

    Raises:
        BackendError: there is none; the message lists those that are there.
    """
    found = available(root)
    if name not in found:
        known = ", ".join(sorted(found)) or "none is installed"
        raise BackendError(
            f"unknown backend `{name}`; known here: {known}; "
            f"install one, or write {FOLDER}/{name}.py"
        )
    return found[name]


def _installed(point: Any) -> BackendEntry:
    dist = point.dist
    origin = f"{dist.name} {dist.version}" if dist is not None else point.value
    return BackendEntry(point.name, origin, point.load)


def _local(path: Path, root: Path) -> BackendEntry:
    def importer() -> Any:
        spec = importlib.util.spec_from_file_location(f"ptycho_tasks_local_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"not a Python module: {path}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, OBJECT)

    return BackendEntry(path.stem, str(path.relative_to(root)), importer, path)


def import_failure(error: BaseException, source: Path | None = None) -> str:
    """Why an import failed, in one line: the module that is really missing, or the line at fault.

    Args:
        error: what the import raised.
        source: the file being imported, to find the line in it.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the module `{error.name}` is missing; install it in this environment"
    if isinstance(error, SyntaxError):
        # A null byte in the file stands in no line, and Python names no file then.
        file = Path(error.filename or source or "?").name
        return (
            f"{file}: {error.msg}"
            if error.lineno is None
            else f"{file}:{error.lineno}: {error.msg}"
        )
    if isinstance(error, AttributeError) and f"'{OBJECT}'" in str(error):
        return f"it defines no `{OBJECT}`; end the file with `{OBJECT} = YourBackend()`"
    text = " ".join(str(error).split()) or "no message"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if source is not None and frame.filename == str(source)
    ]
    where = f"{source.name}:{lines[-1]}: " if source is not None and lines else ""
    return f"{where}{type(error).__name__}: {text}"
