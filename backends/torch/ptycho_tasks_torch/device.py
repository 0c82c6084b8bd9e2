"""The device that torch computes on, and settings of the process that are restored afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptycho_tasks.errors import ConfigError
from ptycho_tasks_torch.execution import TorchExecution


def find_device(accelerator: str) -> torch.device:
    """The device for `auto`, `cpu`, `gpu`, `cuda` or `mps`.

    Raises:
        ConfigError: torch finds no such device here.
    """
    is_available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    names = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(
        accelerator, (accelerator,)
    )
    for name in names:
        if is_available[name]:
            return torch.device(name)
    raise ConfigError(
        f"execution.accelerator: torch {torch.__version__} finds no `{accelerator}` here; "
        f"take one of: auto, {', '.join(name for name in is_available if is_available[name])}"
    )


@contextmanager
def settings(
    execution: TorchExecution, seed: int | None = None, processes: int = 1
) -> Iterator[None]:
    """Set threads, random numbers and kernels; restore them afterwards.

    Args:
        execution: gives the number of threads, and which kernels to take.
        seed: of torch's random numbers; None leaves them alone.
        processes: number of processes that share the CPU, where torch chooses the threads.

    Raises:
        ConfigError: a kernel is not deterministic, but has to be.
    """
    threads = torch.get_num_threads()
    deterministic = _read_deterministic()
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(enabled=seed is not None):
        try:
            torch.set_num_threads(execution.threads or max(threads // processes, 1))
            if execution.deterministic:
                # CUDA's linear algebra reads this when it starts.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True)
            if execution.deterministic is False:
                torch.backends.cudnn.benchmark = True
            if seed is not None:
                torch.manual_seed(seed)
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            if not execution.deterministic or "deterministic" not in str(error):
                raise
            kernel = str(error).split(", but")[0].split(". ")[0]
            raise ConfigError(f"execution.deterministic: {kernel}; take null or false") from error
        finally:
            torch.set_num_threads(threads)
            # Only where it changed: the call loads torch's compiler, which takes a second.
            if _read_deterministic() != deterministic:
                torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            torch.backends.cudnn.benchmark = benchmark


def _read_deterministic() -> tuple[bool, bool]:
    """Whether kernels must be deterministic, and whether others only cause a warning."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
