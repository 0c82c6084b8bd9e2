"""The executor `slurm`: jobs of a Slurm cluster, submitted through submitit.

submitit writes the script, and has a job that nears its time limit go on in a new one. The states
come from `squeue`, as `sacct` needs a database that not every cluster has.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path

from ptycho_tasks.errors import ConfigError, PtychoTasksError, one_line
from ptycho_tasks.executors import Job, NoOptions, State, Status
from ptycho_tasks.options import Section
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


class Slurm:
    """A Slurm cluster, as the commands of this machine reach it."""

    name, options_type = "slurm", NoOptions

    def submit(self, job: Job) -> str:
        """Submit a job."""
        (answer,) = self.submit_all([job])
        if isinstance(answer, PtychoTasksError):
            raise answer
        return answer

    def submit_all(self, jobs: Sequence[Job]) -> Sequence[str | PtychoTasksError]:
        """Submit jobs that ask for the same as one array; where that is refused, one by one."""
        _check_programs()
        if len(jobs) > 1:
            with suppress(_RefusedError):
                return _submit(jobs)
        answers: list[str | PtychoTasksError] = []
        why = ""
        for job in jobs:
            try:
                if why:  # as is refused to one, so to the rest
                    raise _RefusedError(why)
                answers += _submit([job])
            except _RefusedError as error:
                why = str(error)
                answers.append(PtychoTasksError(f"cannot submit {job.name}: {why}"))
        return answers

    def recall(self, folders: Sequence[Path], options: Section) -> Mapping[Path, str]:
        """Ask the controller, which knows the scripts of its jobs."""
        from ptycho_tasks.builds.slurm_scripts import find_folder

        mine = f"--user={os.getuid()}"
        done = _run("squeue", "--noheader", "--array", mine, "--format=%i|%o")
        if done.returncode:
            raise PtychoTasksError(f"Slurm does not answer: {one_line(done.stderr.strip())}")
        rows = [line.partition("|") for line in done.stdout.splitlines()]
        found = {find_folder(number, script): number for number, _, script in rows}
        return {folder: found[folder] for folder in folders if folder in found}

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


class _RefusedError(Exception):
    """Jobs are not taken; the text says why."""


def _check_programs() -> None:
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ConfigError(
            "execution.executor: slurm: there is no `sbatch` on this machine; run where Slurm's "
            "commands are, or take another executor"
        )
    try:
        import submitit  # noqa: F401 (what needs it comes later)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "execution.executor: slurm needs submitit; install `ptycho-tasks[slurm]`"
        ) from error


def _submit(jobs: Sequence[Job]) -> list[str]:
    from ptycho_tasks.builds.slurm_scripts import submit_scripts

    try:
        with redirect_stderr(io.StringIO()):  # the error says it again
            return submit_scripts(jobs)
    except Exception as error:  # submitit raises whatever its part of it raises
        raise _RefusedError(_find_reason(error)) from error


def _ask_controller(ids: Sequence[str]) -> dict[str, Status]:
    """Raises PtychoTasksError where the controller does not answer."""
    chosen = f"--jobs={','.join(ids)}"
    columns = "--format=%i|%T|%r|%N"
    done = _run("squeue", "--noheader", "--array", "--states=all", columns, chosen)
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
