"""`ptycho-tasks run-stage`, which schedulers run."""

from __future__ import annotations

import sys

import click


@click.command("run-stage", hidden=True)
@click.argument("key")
def run_stage_command(key: str) -> None:
    """Run the stage of a job that `doit` submitted, KEY in `.ptycho/jobs`.

    An executor runs it on the machine of the job, in the project's folder.
    """
    from ptycho_tasks.builds.job_stage import run_job

    sys.exit(run_job(key))
