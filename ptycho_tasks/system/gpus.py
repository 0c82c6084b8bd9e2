"""The GPUs of this machine, found without loading a library that computes on them."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from contextlib import suppress

VISIBLE = "CUDA_VISIBLE_DEVICES"
_TIMEOUT_S = 20


@functools.cache
def list_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where the
    driver's `nvidia-smi` is not there. They are those of the first call, whatever is set later."""
    chosen = os.environ.get(VISIBLE)
    if chosen is not None:
        return tuple(name for name in re.split(r"[\s,]+", chosen) if name and name != "-1")
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["nvidia-smi", "-L"], text=True, capture_output=True, timeout=_TIMEOUT_S, check=True
        )
        return tuple(re.findall(r"^GPU .*\(UUID: (GPU-[\w-]+)\)", done.stdout, re.MULTILINE))
    return ()


def choose_gpu(name: str) -> None:
    """Have what this process computes run on one GPU; before it has computed on any."""
    os.environ[VISIBLE] = name
