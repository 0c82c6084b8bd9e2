"""The program of a child process, which trains with its parent; see `devices`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.training.best import BestEpochs
from ptycho_tasks_torch.training.devices import Job, TeamMember, connect, open_store
from ptycho_tasks_torch.training.joined import make_joint_objective
from ptycho_tasks_torch.training.trainer import TrainingRun, fit, silence_lightning


def main() -> None:
    """Read the job from standard input, train, and report on standard output."""
    # A terminal sends the signal to the parent too, and the parent decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)

        def answer(error: Exception | None) -> None:
            pickle.dump(error, out)
            out.flush()

        job, frames, member, port = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        scans = [
            replace(scan, diffraction=source.open())
            for scan, source in zip(job.scans, frames, strict=True)
        ]
        job = replace(job, scans=scans)
        try:
            _train(job, member, port, lambda: answer(None))
        except PtychoTasksError as error:
            answer(error)
        except Exception:
            answer(
                RuntimeError(
                    f"in the process of device {member.rank + 1}: {traceback.format_exc()}"
                )
            )


def _exit_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the parent is gone, however it ended
    os.kill(os.getpid(), signal.SIGKILL)


def _train(job: Job, member: TeamMember, port: int, ready: Callable[[], None]) -> None:
    options, execution = job.options, job.execution
    with settings(execution, options.seed, member.devices), silence_lightning():
        objective = make_joint_objective(job.scans, options, job.make_objective)
        run = TrainingRun(options, objective, BestEpochs(options, 0))
        run.objective.load_state_dict(job.objective)
        if job.state is not None:
            run.resume(job.state)
        store = open_store(port, member.devices, listens=False)
        ready()
        with connect(store, member):
            fit(run, execution, member, lambda: None)
