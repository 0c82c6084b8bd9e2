"""Import torch without what a reconstruction never needs, in a program of ours.

Torch imports its compiler's tables of operators with everything else: a third of the time. They are
put off until something of them is asked for, which compiling a network, exporting one, or tensors
without data would do. Where others may want that, in a process that is not all ours, nothing is
put off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import LazyLoader
from types import ModuleType

from ptycho_tasks.system.program import is_whole_process

TRIED = "2.13."
"""The version of torch of which it is known that these modules can wait."""
DEFERRED = frozenset({
    "torch._meta_registrations", "torch._native", "torch.distributed._meta_registrations",
    "torch.export",
})  # fmt: skip
"""Of these, `torch._native` has kernels for GPUs, so that it can wait only where there is none."""
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What is there where CUDA, ROCm or Windows' subsystem for Linux has a GPU."""


class _Finder(MetaPathFinder):
    """Finds modules that are loaded when something of them is asked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in DEFERRED else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def import_torch() -> None:
    """Import torch, if it is not; see the module for what is put off."""
    finder = _Finder()
    if is_whole_process() and "torch" not in sys.modules and _can_wait():
        sys.meta_path.insert(0, finder)
    try:
        import torch  # noqa: F401
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)


def _can_wait() -> bool:
    try:
        return version("torch").startswith(TRIED) and not any(map(os.path.exists, GPUS))
    except PackageNotFoundError:
        return False
