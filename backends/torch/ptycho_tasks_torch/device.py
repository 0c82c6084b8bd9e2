"""The device that torch computes on, and settings of the process that are restored afterwards."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

from ptycho_tasks.errors import ConfigError
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.launched import read_own_seat

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


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


def require_devices(execution: TorchExecution, device: torch.device) -> None:
    """Refuse devices that are not there.

    Raises:
        ConfigError: names the key.
    """
    if execution.devices == 1:
        return
    devices = read_own_seat(execution.devices).local_count
    # Any number of processes can share a CPU.
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, devices)
    if devices > available:
        raise ConfigError(
            f"execution.devices: {devices} are asked for, but torch finds {available} of the kind "
            f"`{device.type}`"
        )
    if not torch.distributed.is_available():
        raise ConfigError("execution.devices: this torch was built without torch.distributed")


@contextmanager
def settings(
    execution: TorchExecution, seed: int | None = None, processes: int = 1
) -> Iterator[None]:
    """Set threads, random numbers and kernels; restore them afterwards.

    Memory that is freed is kept for the next use from then on.

    Args:
        execution: gives the number of threads, and which kernels to take.
        seed: of torch's random numbers; None leaves them alone.
        processes: number of processes that share the CPU, where torch chooses the threads.

    Raises:
        ConfigError: a kernel is not deterministic, but has to be.
    """
    _keep_freed_memory()
    threads = torch.get_num_threads()
    deterministic = _read_deterministic()
    benchmark = torch.backends.cudnn.benchmark
    # Each GPU that is named, or all if none is said, would be started for its random numbers.
    is_cuda = seed is not None and find_device(execution.accelerator).type == "cuda"
    gpus = [torch.cuda.current_device()] if is_cuda else []
    with torch.random.fork_rng(gpus, enabled=seed is not None):
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


@cache
def _keep_freed_memory() -> None:
    """Have the C library keep freed memory, where it is glibc.

    It gives that of each intermediate result back to the system otherwise, which clears it before
    the next one has it: a quarter of the time of a step, and more on threads.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return
    for option, size in ((_TRIM_THRESHOLD, 2**25), (_MMAP_THRESHOLD, 2**22)):
        set_option(option, size)


def give_freed_memory_back() -> None:
    """Have the C library give all freed memory back to the system, where it is glibc."""
    with suppress(AttributeError, TypeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _read_deterministic() -> tuple[bool, bool]:
    """Whether kernels must be deterministic, and whether others only cause a warning."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
