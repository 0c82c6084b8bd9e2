"""Where torch computes, and settings of the process that a computation must leave as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import ExecutionOptions


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
def settings(execution: ExecutionOptions, seed: int | None = None) -> Iterator[None]:
    """Threads and random numbers as asked for; both as before afterwards.

    Args:
        execution: gives the number of threads.
        seed: of torch's random numbers; None leaves them alone.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(enabled=seed is not None):
        try:
            torch.set_num_threads(execution.threads or threads)
            if seed is not None:
                torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
