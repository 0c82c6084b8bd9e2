"""What a worker of Dask runs: the command of a stage, in a process that ends with the worker.

A thread of the worker waits for it. So a stage has its own threads, memory and CUDA, and can be
ended, which a function that runs in a worker cannot.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ptycho_tasks.system.warded import end_warded, start_warded

BEGINS, ENDED = "begins on", "ended with exit status"
"""What stands in a job's record: one that has no line of the second kind lost its worker."""
_running: dict[str, subprocess.Popen[bytes]] = {}
_stopped: set[str] = set()
"""Of this worker: the stages that run, and those that are not to begin any more."""
_lock = threading.Lock()


def run_command(
    command: Sequence[str],
    root: str,
    record: str,
    environment: Mapping[str, str],
    may_repeat: bool,
) -> None:
    """Run the command of a job to its end; how that was stands in the files that it leaves.

    Args:
        command: its words.
        root: the folder to run it in.
        record: a file of the job, to which it is added when the command begins and ends.
        environment: what is set for it besides what the worker has.
        may_repeat: whether it is begun again where a worker that ran it was lost.
    """
    from distributed import get_worker

    worker = get_worker()
    key = str(worker.get_current_task())
    with Path(record).open("a", buffering=1) as file:
        if not may_repeat and BEGINS in Path(record).read_text():
            file.write("not begun again: its worker was lost\n")
            return
        file.write(f"{BEGINS} {worker.address} ({socket.gethostname()}, process {os.getpid()})\n")
        try:
            process = _start(key, command, cwd=root, env={**os.environ, **environment}, stderr=file)
        except OSError as error:
            file.write(f"cannot be started: {error}\n{ENDED} 127\n")
            return
        file.write(f"{ENDED} {process.wait()}\n" if process else f"{ENDED} none: cancelled\n")
    with _lock:
        _running.pop(key, None)


def _start(key: str, command: Sequence[str], **options: object) -> subprocess.Popen[bytes] | None:
    with _lock:
        if key in _stopped:
            return None
        _running[key] = start_warded(command, stdout=options["stderr"], **options)
        return _running[key]


def end_commands(keys: Collection[str]) -> None:
    """End those of some jobs that run on this worker, and let none begin; does not wait."""
    with _lock:
        _stopped.update(keys)
        running = [process for key, process in _running.items() if key in keys]
    for process in running:
        threading.Thread(target=end_warded, args=(process,), daemon=True).start()
