"""Where torch computes, and settings of the process that a computation must leave as they were."""

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
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    wanted = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(
        accelerator, (accelerator,)
    )
    for name in wanted:
        if there[name]:
            return torch.device(name)
    raise ConfigError(
        f"execution.accelerator: torch {torch.__version__} finds no `{accelerator}` here; "
        f"take one of: auto, {', '.join(name for name in there if there[name])}"
    )


@contextmanager
def settings(
    execution: TorchExecution, seed: int | None = None, processes: int = 1
) -> Iterator[None]:
    """Threads, random numbers and kernels as asked for; all as before afterwards.

    Args:
        execution: gives the number of threads, and which kernels to take.
        seed: of torch's random numbers; None leaves them alone.
        processes: that share the CPU, where the number of threads is the library's choice.

    Raises:
        ConfigError: a kernel is needed that is not deterministic, and only those may be taken.
    """
    threads = torch.get_num_threads()
    deterministic = _deterministic()
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng(enabled=seed is not None):
        try:
            torch.set_num_threads(execution.threads or max(threads // processes, 1))
            if execution.deterministic:
                # Read when CUDA's linear algebra starts.
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
            # Only where it was changed: the call loads torch's compiler, which takes a second.
            if _deterministic() != deterministic:
                torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            torch.backends.cudnn.benchmark = benchmark


def _deterministic() -> tuple[bool, bool]:
    """Whether only deterministic kernels may be taken, and whether others are only warned of."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
