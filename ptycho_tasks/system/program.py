"""What a program of ours sets for its process; nothing that is imported into another's does so."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

DEFERRED = frozenset({"numpy.f2py", "numpy.testing"})
"""What SciPy imports of NumPy and does not use: a third of its time."""
_COLLECT_AFTER = 100_000
_whole_process = False


def begin_program(*, is_whole: bool) -> None:
    """Call it before others register what is to be done at the end.

    Thousands of objects are made at the start and all of them are kept: to look for garbage among
    them after every few hundred is a quarter of the time of a run with nothing to do. At the end,
    garbage is left to the system: to look for it once more takes, with torch, a quarter of the time
    that its import took.

    Args:
        is_whole: whether the process runs nothing but our program, and no tasks of a user.
    """
    global _whole_process
    _whole_process = is_whole
    gc.set_threshold(_COLLECT_AFTER)
    atexit.register(gc.freeze)
    defer_imports(DEFERRED)


def defer_imports(names: Iterable[str]) -> None:
    """From now on, load these modules when something of them is asked for, and not when they are
    imported; nothing happens in a process that is not all ours, which may need them whole."""
    if _whole_process:
        sys.meta_path.insert(0, _Finder(names))


class _Finder:
    """Finds modules that are loaded late."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in self._names else None
        if spec is not None and spec.loader is not None:
            from importlib.util import LazyLoader

            spec.loader = LazyLoader(spec.loader)
        return spec
