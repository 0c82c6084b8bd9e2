"""The executor `slurm`: jobs of a Slurm cluster, submitted through submitit.

submitit writes the script, and has a job that nears its time limit go on in a new one. The states
come from `squeue`, as `sacct` needs a database that not every cluster has.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import ConfigError, PtychoTasksError, one_line
from ptycho_tasks.executors import Job, NoOptions, State, Status
from ptycho_tasks.options import Resources, Section
from ptycho_tasks.system.processes import ask

_TIMEOUT_S = 60
_MOST_IDS = 500
"""Jobs that one command asks about."""
_STATES: Mapping[str, State] = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD"),
        "pending",
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"),
        "running",
    ),
    "OUT_OF_MEMORY": "memory",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    **dict.fromkeys(("NODE_FAIL", "BOOT_FAIL", "PREEMPTED"), "node"),
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}


class CommandJob:
    """What submitit runs on the other machine: a command, once more after a time limit."""

    def __init__(self, command: Sequence[str], root: str) -> None:
        """Run `command` in the folder `root`."""
        self.command, self.root = list(command), root

    def __call__(self) -> int:
        """Run it; gives its exit status."""
        return subprocess.run(self.command, cwd=self.root, check=False).returncode

    def checkpoint(self) -> Any:
        """What runs after a time limit: the same, which goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(CommandJob(self.command, self.root))


class Slurm:
    """A Slurm cluster, as the commands of this machine reach it."""

    name, options_type = "slurm", NoOptions

    def submit(self, job: Job) -> str:
        """Submit a job."""
        executor = _make_executor(job.folder / "slurm", job.resources.requeues)
        try:
            executor.update_parameters(**_parameters(job.name, job.resources))
            with redirect_stderr(io.StringIO()):  # the error says it again
                submitted = executor.submit(CommandJob(job.command, str(job.root)))
        except Exception as error:  # submitit raises whatever its part of it raises
            raise PtychoTasksError(f"cannot submit {job.name}: {_find_reason(error)}") from error
        return str(submitted.job_id)

    def poll(self, ids: Sequence[str], options: Section) -> Mapping[str, Status]:
        """Ask the controller, and of jobs that it has forgotten the accounting, if there is one."""
        found: dict[str, Status] = {}
        for first in range(0, len(ids), _MOST_IDS):
            part = ids[first : first + _MOST_IDS]
            found |= _ask_controller(part)
            found |= _ask_accounting([one for one in part if one not in found])
        return found

    def cancel(self, ids: Sequence[str], options: Section) -> None:
        """End jobs."""
        for first in range(0, len(ids), _MOST_IDS):
            _run("scancel", "--quiet", *ids[first : first + _MOST_IDS])


def _make_executor(folder: Path, requeues: int) -> Any:
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ConfigError(
            "execution.executor: slurm: there is no `sbatch` on this machine; run where Slurm's "
            "commands are, or take another executor"
        )
    try:
        from submitit import SlurmExecutor
    except ModuleNotFoundError as error:
        raise ConfigError(
            "execution.executor: slurm needs submitit; install `ptycho-tasks[slurm]`"
        ) from error
    return SlurmExecutor(folder, max_num_timeout=requeues)


def _parameters(name: str, asked: Resources) -> dict[str, Any]:
    """The parameters of submitit; its own defaults stand where they are those of Slurm too."""
    further = {key.replace("_", "-"): value for key, value in asked.options.items()}
    parameters: dict[str, Any] = {
        "job_name": re.sub(r"\s", "_", name),
        "partition": asked.partition,
        "account": asked.account,
        "gpus_per_node": asked.gpus or None,
        "cpus_per_task": asked.cpus,
        "mem": None if asked.memory_gb is None else f"{round(asked.memory_gb * 1024)}M",
        "time": asked.minutes,
        "stderr_to_stdout": True,
        "additional_parameters": further or None,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _ask_controller(ids: Sequence[str]) -> dict[str, Status]:
    """Raises PtychoTasksError where the controller does not answer."""
    chosen = f"--jobs={','.join(ids)}"
    done = _run("squeue", "--noheader", "--states=all", "--format=%i|%T|%r|%N", chosen)
    if done.returncode and "Invalid job id" not in done.stderr:
        raise PtychoTasksError(f"Slurm does not answer: {one_line(done.stderr.strip())}")
    return dict(_read_states(done.stdout))


def _ask_accounting(ids: Sequence[str]) -> dict[str, Status]:
    if not ids:
        return {}
    columns = "--format=JobID,State,Reason,NodeList"
    chosen = f"--jobs={','.join(ids)}"
    done = _run("sacct", "--noheader", "--allocations", "--parsable2", columns, chosen)
    return {} if done.returncode else dict(_read_states(done.stdout))


def _read_states(text: str) -> list[tuple[str, Status]]:
    states = []
    for line in text.splitlines():
        one, state, reason, nodes = (*line.split("|"), "", "", "")[:4]
        words = state.split()  # CANCELLED by 1000
        known = _STATES.get(words[0], "ended") if words else "ended"
        detail = nodes if known == "running" else reason if known == "pending" else state
        states.append((one, Status(known, detail)))
    return states


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm; the status is 127 where it is not there.

    Raises:
        PtychoTasksError: it does not end.
    """
    return ask(command, _TIMEOUT_S)


def _find_reason(error: Exception) -> str:
    """What the scheduler said, which submitit puts into a longer text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("sbatch:", "slurm_"))]
    said = [line for line in said if "retrying" not in line]
    return one_line((said or lines[-1:] or [type(error).__name__])[0])


executor = Slurm()
