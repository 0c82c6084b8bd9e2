"""Plugins: installed ones by entry point, a project's own in a folder of it.

None is imported before it is used.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.processes import describe_exit

LOCAL_MODULE = "ptycho_tasks_local_"
"""What the names of modules begin with that hold a project's own plugins."""


class PluginKind(NamedTuple):
    """What is looked up: backends, or readers."""

    word: str
    """What messages call one; also the name that a one-file plugin must define."""
    group: str
    """The group of entry points."""
    folder: str
    """The folder of a project that holds its own."""

    @property
    def module_prefix(self) -> str:
        """What the names of modules begin with that hold a project's own plugins of this kind."""
        return f"{LOCAL_MODULE}{self.folder}."


@dataclass(frozen=True)
class Plugin:
    """A plugin that could be imported."""

    name: str
    origin: str
    """The distribution and its version, or the local file."""
    importer: Callable[[], Any]
    source: Path | None = None
    """The file of a local plugin."""
    namesake: str = ""
    """The origin of another plugin of this name, which makes both unusable."""


def list_plugins(kind: PluginKind, root: Path | None) -> dict[str, Plugin]:
    """Every plugin of a kind, by name: the installed ones, and those of a project at `root`, where
    one is given. None is imported."""
    plugins: dict[str, Plugin] = {}
    installed = _list_installed(kind.group, tuple(sys.path))
    local = [] if root is None else _list_local(kind, root)
    for plugin in [*installed, *local]:
        other = plugins.setdefault(plugin.name, plugin)
        if other.origin != plugin.origin:
            plugins[plugin.name] = replace(other, namesake=plugin.origin)
    return plugins


@cached
def _list_installed(group: str, places: tuple[str, ...]) -> tuple[Plugin, ...]:
    # Every distribution's metadata is read for it, which takes longer than to read a small scan.
    return tuple(_installed(point) for point in entry_points(group=group))


def _list_local(kind: PluginKind, root: Path) -> list[Plugin]:
    return [_local(path, kind, root) for path in list_local_files(kind, root)]


def list_local_files(kind: PluginKind, root: Path) -> list[Path]:
    """The files of a project's own plugins."""
    folder = root / kind.folder
    files = sorted(folder.glob("*.py")) if folder.is_dir() else []
    return [path for path in files if not path.name.startswith("_")]


def _installed(point: Any) -> Plugin:
    # Each time they are asked for, they are read anew.
    about = None if point.dist is None else point.dist.metadata
    origin = point.value if about is None else f"{about['Name']} {about['Version']}"
    return Plugin(point.name, origin, point.load)


def _local(path: Path, kind: PluginKind, root: Path) -> Plugin:
    def importer() -> Any:
        spec = importlib.util.spec_from_file_location(f"{kind.module_prefix}{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError(f"not a Python module: {path}")
        module = importlib.util.module_from_spec(spec)
        # Where types and dataclasses look for what their annotations name.
        sys.modules[spec.name] = module
        # Python takes compiled files for fresh by size and whole seconds: someone who tries an
        # idea is faster.
        sys.dont_write_bytecode = True
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # for the helpers beside it
        try:
            exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
            return getattr(module, kind.word)
        except BaseException:
            del sys.modules[spec.name]
            raise

    return Plugin(path.stem, str(path.relative_to(root)), importer, path)


def import_failure(error: BaseException, source: Path | None = None, word: str = "") -> str:
    """Why code of a plugin failed, in one line: the module that is really missing, or the line at
    fault.

    Args:
        error: what was raised.
        source: the file at work, to find the line in it.
        word: the name that the file should define.
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
    if word and isinstance(error, AttributeError) and f"'{word}'" in str(error):
        return f"it defines no `{word}`; end the file with `{word} = Your{word.capitalize()}()`"
    text = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
    if isinstance(error, SystemExit):
        text = f"it ended the program with {describe_exit(error)}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if source is not None and frame.filename == str(source)
    ]
    where = f"{source.name}:{lines[-1]}: " if source is not None and lines else ""
    return f"{where}{text}"
