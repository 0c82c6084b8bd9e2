"""Import torch without what a reconstruction never needs, in a program of ours.

Torch imports its compiler's tables of operators with everything else: a third of the time. They are
put off until something of them is asked for, which compiling a network, exporting one, or tensors
without data would do. Where others may want that, in a process that is not all ours, nothing is
put off.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

from ptycho_tasks.system.program import defer_imports

TRIED = "2.13."
"""The version of torch of which it is known that these modules can wait."""
DEFERRED = frozenset({
    "torch._meta_registrations", "torch._native", "torch.distributed._meta_registrations",
    "torch.export",
})  # fmt: skip
"""Of these, `torch._native` has kernels for GPUs, so that it can wait only where there is none."""
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What is there where CUDA, ROCm or Windows' subsystem for Linux has a GPU."""


def import_torch() -> None:
    """Import torch, if it is not; see the module for what is put off."""
    if "torch" not in sys.modules and _can_wait():
        defer_imports(DEFERRED)
    import torch  # noqa: F401


def _can_wait() -> bool:
    try:
        return version("torch").startswith(TRIED) and not any(map(os.path.exists, GPUS))
    except PackageNotFoundError:
        return False
