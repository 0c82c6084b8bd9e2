"""Stages as jobs of a real Slurm, which `.ci/slurm` starts in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ptycho_tasks.builds.job_records import JOBS
from ptycho_tasks.builds.slurm import executor as slurm_executor
from ptycho_tasks.options import Resources
from ptycho_tasks.system.lock import take_flock
from ptycho_tasks.testing import ExecutorConformance
from waiting_project import UNTIL_S, begin, has_begun, wait_for, write_waiting_project

SCRIPT = Path(__file__).parents[2] / ".ci" / "slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
UNFIT = (
    "only root can start a Slurm of its own"
    if not hasattr(os, "geteuid") or os.geteuid() != 0
    else "Slurm is not installed: `.ci/slurm install` does that"
    if not all(shutil.which(program, path=PATH) for program in PROGRAMS)
    else ""
)
pytestmark = pytest.mark.skipif(bool(UNFIT), reason=UNFIT)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The folder of a Slurm that runs."""
    pytest.importorskip("submitit", reason="needs `ptycho-tasks[slurm]`")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], check=False, timeout=UNTIL_S)
    try:
        if started.returncode:
            pytest.skip(f"`{SCRIPT} start` could not start a Slurm here")
        yield folder
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=UNTIL_S)


@pytest.fixture
def cluster(slurm, write_project, monkeypatch):
    """A project whose training is a job that waits until its file `hold` is removed."""
    monkeypatch.setenv("SLURM_CONF", str(slurm / "slurm.conf"))
    monkeypatch.setenv("PTYCHO_TASKS_ASK_S", "0.3")
    monkeypatch.setenv("PTYCHO_TASKS_LATE_S", "0.5")

    def write(requeues=3):
        resources = f"{{all: {{memory_gb: 1, minutes: 10, requeues: {requeues}}}}}"
        return write_waiting_project(write_project, f"executor: slurm, resources: {resources}")

    yield write
    subprocess.run(["scancel", "--user=root"], check=True, timeout=UNTIL_S)


def list_states():
    done = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--format=%T"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def test_a_killed_run_finds_its_job_and_a_restarted_controller_loses_nothing(cluster, slurm):
    root = cluster()
    with begin(root) as run:
        wait_for(lambda: has_begun(root))
        run.kill()
        run.communicate()
    subprocess.run([SCRIPT, "stop-controller", slurm], check=True)
    (root / JOBS / "slurm.json").unlink()  # an answer holds for a while, whoever asked
    with begin(root) as run:
        # It cannot be known whether the job is there: nothing is submitted a second time.
        assert "Slurm does not answer" in run.communicate(timeout=UNTIL_S)[0]
    subprocess.run([SCRIPT, "start-controller", slurm], check=True)
    wait_for(lambda: "RUNNING" in list_states())
    with begin(root) as run:
        said = run.stdout.readline()
        while "found job" not in said:
            said = run.stdout.readline()
            assert said
        (root / "hold").unlink()
        run.communicate(timeout=UNTIL_S)
    assert run.returncode == 0
    assert not has_begun(root, 2)


SBATCH = """\
#!/bin/sh
SLURM "$@"
# Who submitted an array is killed, and the run with it, before it reads the answer.
! grep -q -- --array "$1" || kill -9 $(ps -o ppid= $PPID) $PPID
"""


def list_jobs(root):
    """Numbers of all jobs of a project, also of those that have ended."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%Z"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("|")[0] for line in done.stdout.splitlines() if line.endswith(f"|{root}")]


def test_an_array_is_found_again_whose_submission_was_not_noted(cluster, tmp_path, monkeypatch):
    root = cluster()
    variants = ", ".join(f"{{name: v{n}, training.epochs: {n}}}" for n in range(1, 6))
    with (root / "ptycho.yaml").open("a") as config:
        config.write(f"variants: [{variants}]\n")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(SBATCH.replace("SLURM", shutil.which("sbatch")))
    sbatch.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        turn = root / JOBS / "slurm.turn"
        turn.parent.mkdir(parents=True)
        # Whose turn it is submits those that wait by then: it is nobody's until all do.
        with turn.open("w") as file, begin(root, "-n", "5", "train") as run:
            assert take_flock(file)
            wait_for(lambda: len([*root.glob(f"{JOBS}/slurm.waiting/*")]) == 5)
            file.close()
            run.communicate(timeout=UNTIL_S)
        assert run.returncode == -signal.SIGKILL
    submitted = list_jobs(root)
    assert any("_" in number for number in submitted)
    (root / "hold").unlink()
    with begin(root, "-n", "5", "train") as run:
        said = run.communicate(timeout=UNTIL_S)[0]
    assert run.returncode == 0, said
    assert {*submitted} <= {*list_jobs(root)}
    assert len(list_jobs(root)) == 5


def test_a_job_that_nears_its_time_limit_goes_on_in_a_new_one(cluster):
    root = cluster()
    with begin(root) as run:
        wait_for(lambda: has_begun(root))
        # Slurm sends this as many seconds before the limit as submitit asked it to.
        subprocess.run(["scancel", "--signal=USR2", "--name=train"], check=True)
        wait_for(lambda: has_begun(root, 2))
        (root / "hold").unlink()
        run.communicate(timeout=UNTIL_S)
    assert run.returncode == 0


def test_a_job_that_may_not_go_on_is_told_in_one_line(cluster):
    root = cluster(requeues=0)
    with begin(root) as run:
        wait_for(lambda: has_begun(root))
        subprocess.run(["scancel", "--signal=USR2", "--name=train"], check=True)
        said = run.communicate(timeout=UNTIL_S)[0]
    assert run.returncode == 1
    assert "reached its time limit of 10 min: raise execution.resources.train.minutes" in said


def test_too_much_memory_is_told_in_one_line(cluster):
    root = cluster()
    (root / "large").touch()
    with begin(root) as run:
        said = run.communicate(timeout=UNTIL_S)[0]
    assert run.returncode == 1
    assert "ran out of memory (it had 1 GB): raise execution.resources.train.memory_gb" in said


class TestConformance(ExecutorConformance):
    """What every executor keeps."""

    executor = slurm_executor
    refused = Resources(partition="none")

    @pytest.fixture(autouse=True)
    def _slurm(self, slurm, monkeypatch):
        monkeypatch.setenv("SLURM_CONF", str(slurm / "slurm.conf"))
