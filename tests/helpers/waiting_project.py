"""A project whose training is a job that waits until it may end, and runs of it."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager

from ptycho_tasks.builds.job_records import JOBS, LOG, RECORD
from ptycho_tasks.testing.project import DOIT
from started_commands import start_command

UNTIL_S = 300
CONFIG = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
fixture: {subset_size: 25}
backend: waiting
execution: {EXECUTION}
"""
BACKEND = '''\
import time
from pathlib import Path

from ptycho_tasks.backend import TrainedModel, TrainingOptions


class Waiting:
    """Trains until the project's file `hold` is gone; counts its beginnings in its checkpoint."""

    name, version, options_type = "waiting", "1", TrainingOptions

    def train(self, request):
        beginnings = request.work_dir / "beginnings"
        with beginnings.open("a") as file:
            file.write("*")
        print("begins", beginnings.read_text(), flush=True)
        if Path("large").exists():
            kept = bytearray(2 * 10**9)
        while Path("hold").exists():
            time.sleep(0.1)
        return TrainedModel(models={})

    def infer(self, request):
        raise NotImplementedError


backend = Waiting()
'''


def write_waiting_project(write_project, execution):
    """Write a project whose training waits until its file `hold` is removed; gives its folder."""
    root = write_project(CONFIG.replace("EXECUTION", execution))
    (root / "backends/waiting.py").write_text(BACKEND)
    (root / "hold").touch()
    return root


@contextmanager
def begin(root, *arguments):
    """A run that goes on in the block."""
    command = [*DOIT, *(arguments or ["train"])]
    run = start_command(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with run:
        try:
            yield run
        finally:
            run.kill()


def wait_for(condition):
    end = time.monotonic() + UNTIL_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def job_of(root):
    (folder,) = [path.parent for path in (root / JOBS).glob(f"*/{RECORD}")]
    return folder


def has_begun(root, times=1):
    return any(f"begins {'*' * times}\n" in p.read_text() for p in (root / JOBS).glob(f"*/{LOG}"))
