"""What a process does that trains along with the one that was asked."""

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
from ptycho_tasks_torch.training.best import Best
from ptycho_tasks_torch.training.devices import Job, Team, connected, find_store
from ptycho_tasks_torch.training.trainer import Task, fit, silence


def work() -> None:
    """What a child does, from its standard input to its end."""
    # Its parent decides, who gets the same signal from a terminal.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)

        def say(error: Exception | None) -> None:
            pickle.dump(error, out)
            out.flush()

        job, frames, team, port = pickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        job = replace(job, scan=replace(job.scan, diffraction=frames.open()))
        try:
            _train_along(job, team, port, lambda: say(None))
        except PtychoTasksError as error:
            say(error)
        except Exception:
            say(RuntimeError(f"in the process of device {team.rank + 1}: {traceback.format_exc()}"))


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing comes: the end of the parent, however it was killed
    os.kill(os.getpid(), signal.SIGKILL)


def _train_along(job: Job, team: Team, port: int, ready: Callable[[], None]) -> None:
    options, execution = job.options, job.execution
    with settings(execution, options.seed, team.devices), silence():
        task = Task(options, job.make_lesson(job.scan, options), Best(options, 0))
        task.lesson.load_state_dict(job.lesson)
        if job.state is not None:
            task.resume(job.state)
        store = find_store(port, team.devices, listens=False)
        ready()
        with connected(store, team):
            fit(task, execution, team, lambda: None)
