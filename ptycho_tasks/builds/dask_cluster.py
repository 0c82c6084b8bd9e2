"""A cluster of Dask on this machine that lives as long as a run: `python -m` this module.

PID FILE WORKERS     the run's process, where to write the scheduler's address, how many workers
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptycho_tasks.system.files import write_atomic
from ptycho_tasks.system.gpus import VISIBLE, list_gpus
from ptycho_tasks.system.processes import count_cores

_LOOK_S = 0.3
_GRACE_S = 3.0
_HOST = "127.0.0.1"


def serve(run: int, file: Path, workers: int) -> None:
    """Run a scheduler and workers until the process `run` has ended, however that happens.

    Args:
        run: the process that stages are run for.
        file: gets the scheduler's address.
        workers: how many; 0: one for each GPU, or one.
    """
    import psutil
    from distributed import Nanny, Scheduler, SpecCluster

    process = psutil.Process(run)
    gpus = list_gpus()
    count = workers or len(gpus) or 1
    scheduler = {"cls": Scheduler, "options": {"host": _HOST, "port": 0, "dashboard": False}}
    specs = {n: {"cls": Nanny, "options": _describe_worker(n, count, gpus)} for n in range(count)}
    cluster = SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.WARNING)
    known = {"address": cluster.scheduler_address, "pid": os.getpid()}
    write_atomic(file, json.dumps(known).encode())
    with suppress(psutil.Error):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_LOOK_S)
    file.unlink(missing_ok=True)
    with suppress(Exception):
        cluster.close(timeout=_GRACE_S)
    # A worker would wait for its stage; it and that end with this process.
    os._exit(0)


def _describe_worker(number: int, count: int, gpus: tuple[str, ...]) -> dict[str, Any]:
    """What a worker has: a thread, as it runs one stage at a time, its share of the cores, and a
    GPU to itself where there are some."""
    environment = {VISIBLE: gpus[number % len(gpus)]} if gpus else {}
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, count_cores() // count)))
    return {
        "host": _HOST,
        "nthreads": 1,
        "memory_limit": 0,  # it would watch the worker, and not its stage
        "resources": {"GPU": 1} if gpus else {},
        "env": {**environment, "OMP_NUM_THREADS": threads},
    }


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
