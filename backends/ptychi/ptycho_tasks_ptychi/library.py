"""Run pty-chi, and restore everything that it changes in the process.

It is a library for scripts. It sets torch's default device and type, seeds every generator, logs
through the root logger, and imports more packages than it uses.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import ExecutionOptions


def import_library() -> tuple[ModuleType, type[Any]]:
    """Import the library: its options, as a module, and its class of reconstructions.

    torchvision is hidden meanwhile. Only random start images need it, and it must match torch to
    the build, which few installations get right by themselves.
    """
    blank, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    transforms.GaussianBlur = None  # type: ignore[attr-defined]
    hidden = {module.__name__: module for module in (blank, transforms)}
    previous = {name: sys.modules.get(name) for name in hidden}
    sys.modules.update(hidden)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ptychi.api as api
            from ptychi.api.task import PtychographyTask
    finally:
        for name, module in previous.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module

    # A batch system's variables must not make it look for other processes.
    alone = {"detect_launcher": lambda task: None}
    return api, type("Task", (PtychographyTask,), alone)


@contextmanager
def contain_library(execution: ExecutionOptions) -> Iterator[None]:
    """Set the number of threads and silence the library; restore afterwards all that it sets."""
    threads, device, dtype = (
        torch.get_num_threads(),
        torch.get_default_device(),
        torch.get_default_dtype(),
    )
    strict = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    numbers, python_numbers = np.random.get_state(), random.getstate()
    root, library, sink = logging.getLogger(), logging.getLogger("ptychi"), logging.NullHandler()
    level = library.level
    with torch.random.fork_rng(), warnings.catch_warnings():
        try:
            warnings.simplefilter("ignore")
            # Without a handler, a message to the root logger would install one on stderr.
            root.addHandler(sink)
            library.setLevel(logging.ERROR)
            torch.set_num_threads(execution.threads or threads)
            # Otherwise patches are summed in the order of the threads, on a CPU too.
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)
            # None means the CPU too, and does not slow down every call that makes a tensor.
            torch.set_default_device(None if device.type == "cpu" else device)
            torch.set_default_dtype(dtype)
            np.random.set_state(numbers)
            random.setstate(python_numbers)
            library.setLevel(level)
            root.removeHandler(sink)


def choose_device(accelerator: str) -> str:
    """Choose the library's device, `cpu` or `gpu`, for `auto`, `cpu`, `gpu`, `cuda` or `mps`.

    Raises:
        ConfigError: no such device is here, or the library cannot use it.
    """
    available = ["cpu", "cuda", "gpu"] if torch.cuda.is_available() else ["cpu"]
    if accelerator == "auto":
        return "gpu" if "gpu" in available else "cpu"
    if accelerator not in available:
        raise ConfigError(
            f"execution.accelerator: pty-chi with torch {torch.__version__} finds no "
            f"`{accelerator}` here; take one of: auto, {', '.join(available)}"
        )
    return "cpu" if accelerator == "cpu" else "gpu"
