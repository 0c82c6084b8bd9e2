"""`doit prior` makes the network that comes with this package: hours of one core, fewer on a GPU.

A run that was interrupted goes on; the same settings give the same bytes on the same CPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SOURCES = Path("ptycho_tasks_torch")
FOLDER, WORK = SOURCES / "prior", Path("build/prior")
BLOCKS = ("9000", "9000", "9000", "4800")
DOIT_CONFIG = {"default_tasks": []}


def task_prior() -> dict[str, Any]:
    """Learn the network that comes with the package from simulated scans."""
    learn = [sys.executable, "-m", "ptycho_tasks_torch.prior.learn"]
    places = ["--out", FOLDER, "--work", WORK]
    parts = ("prior", "unrolled", "physics")
    return {
        "actions": [[*learn, *places, "--blocks", *BLOCKS, "--seed", "0"]],
        "file_dep": [path for part in parts for path in sorted(SOURCES.glob(f"{part}/*.py"))],
        "targets": [FOLDER / "wts.h5.zip"],
        "verbosity": 2,
    }
