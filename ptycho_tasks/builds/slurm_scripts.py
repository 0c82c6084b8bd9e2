"""Jobs of Slurm as submitit submits them: one, or several that ask for the same, as an array.

    .ptycho/jobs/KEY/slurm/                  submitit's files of a job
    .ptycho/jobs/slurm.arrays/NAME/0, 1, ... links to these folders, by the numbers in an array

submitit keeps the files of an array's jobs in one folder, unless the number is part of its path: so
each has its own, behind a link, where it can be read and removed by itself. What a job runs lies
there before it is submitted: it needs nobody who learns its number, and who does not can tell it
by the path of its script.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from submitit import SlurmExecutor
from submitit.helpers import DelayedSubmission

from ptycho_tasks.executors import Job
from ptycho_tasks.options import Resources

_FOLDER, _ARRAYS = "slurm", "slurm.arrays"
_BEGINS = "begins.pkl"
_SETUP = f"""\
number=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
number=${{number:-$SLURM_JOB_ID}}
(cd FOLDER/$SLURM_ARRAY_TASK_ID && mv -n {_BEGINS} "$number"_submitted.pkl) 2>/dev/null"""
"""submitit looks for what a job runs under the job's number."""
_SETUP_ARRAY = """\
names=(NAMES)
scontrol update JobId="$number" Name="${names[SLURM_ARRAY_TASK_ID]}" 2>/dev/null"""
"""Once it begins, a job of an array is called what it is."""


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
        return DelayedSubmission(CommandJob(self.command, self.root))


class _ArrayExecutor(SlurmExecutor):  # type: ignore[misc]
    """Submits an array as if it were its first job, to whose files submitit adds its own."""

    @staticmethod
    def _get_job_id_from_submission_command(string: str | bytes) -> str:
        return f"{SlurmExecutor._get_job_id_from_submission_command(string)}_0"


def submit_scripts(jobs: Sequence[Job]) -> list[str]:
    """Submit jobs that ask for the same, several as an array; gives their numbers, as `12_0`.

    Raises whatever submitit raises, and OSError where links cannot be made.
    """
    first, *others = jobs
    asked, name = first.resources, _write_name(first)
    for job in jobs:
        begins = DelayedSubmission(CommandJob(job.command, str(job.root)))
        begins.set_timeout(asked.minutes, asked.requeues)
        (job.folder / _FOLDER).mkdir(exist_ok=True)
        begins.dump(job.folder / _FOLDER / _BEGINS)
    if not others:
        folder = first.folder / _FOLDER
        executor = SlurmExecutor(folder, max_num_timeout=asked.requeues)
        setup, further = [_SETUP.replace("FOLDER", shlex.quote(str(folder)))], {}
    else:
        folder = _link_folders(jobs)
        executor = _ArrayExecutor(folder / "%a", max_num_timeout=asked.requeues)
        names = " ".join(shlex.quote(_write_name(job)) for job in jobs)
        setup = [
            _SETUP.replace("FOLDER", shlex.quote(str(folder))),
            _SETUP_ARRAY.replace("NAMES", names),
        ]
        name += f"+{len(others)}"
        further = {"array": f"0-{len(others)}"}
    executor.update_parameters(**_list_parameters(asked, further), job_name=name, setup=setup)
    number = str(executor.submit(CommandJob(first.command, str(first.root))).job_id)
    if not others:
        return [number]
    return [f"{number.removesuffix('_0')}_{index}" for index in range(len(jobs))]


def find_folder(number: str, script: str) -> Path | None:
    """The folder of a job.

    Args:
        number: that Slurm gave it.
        script: the path of what was submitted.
    """
    place, index = Path(script).parent, number.partition("_")[2]
    with suppress(OSError):
        return ((place / index).readlink() if index else place).parent
    return None


def _link_folders(jobs: Sequence[Job]) -> Path:
    """A folder that holds a link for each job; those of which no job is left are removed."""
    arrays = jobs[0].folder.parent / _ARRAYS
    for old in arrays.glob("*/"):
        if not any(link.is_dir() for link in old.iterdir()):
            shutil.rmtree(old, ignore_errors=True)
    folder = arrays / uuid4().hex[:16]
    folder.mkdir(parents=True)
    for index, job in enumerate(jobs):
        (folder / str(index)).symlink_to(job.folder / _FOLDER)
    return folder


def _write_name(job: Job) -> str:
    return re.sub(r"\s", "_", job.name)


def _list_parameters(asked: Resources, further: dict[str, Any]) -> dict[str, Any]:
    """The parameters of submitit; its own defaults stand where they are those of Slurm too."""
    options = {key.replace("_", "-"): value for key, value in asked.options.items()} | further
    parameters: dict[str, Any] = {
        "partition": asked.partition,
        "account": asked.account,
        "gpus_per_node": asked.gpus or None,
        "cpus_per_task": asked.cpus,
        "mem": None if asked.memory_gb is None else f"{round(asked.memory_gb * 1024)}M",
        "time": asked.minutes,
        "stderr_to_stdout": True,
        "additional_parameters": options or None,
    }
    return {key: value for key, value in parameters.items() if value is not None}
