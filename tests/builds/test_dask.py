"""Stages as jobs of dask.distributed, with real processes as workers, which are killed."""

from __future__ import annotations

import subprocess
import sys
import types
from contextlib import ExitStack
from functools import partial

import psutil
import pytest

from ptycho_tasks.builds import dask
from ptycho_tasks.builds.job_records import JOBS
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.executors import Job
from ptycho_tasks.options import Resources
from ptycho_tasks.testing import ExecutorConformance
from waiting_project import UNTIL_S, begin, has_begun, wait_for, write_waiting_project

pytest.importorskip("distributed", reason="needs `ptycho-tasks[dask]`")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setenv("PTYCHO_TASKS_ASK_S", "0.3")
    monkeypatch.setenv("PTYCHO_TASKS_LATE_S", "0.5")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The file of a scheduler with two workers, each with its nanny."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file]
    with ExitStack() as stack, (folder / "log").open("w") as log:
        for words in (["scheduler", "--port", "0"], *[["worker", "--nthreads", "1"]] * 2):
            command = [sys.executable, "-m", "dask", *words, *common]
            process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(process.kill)
        wait_for(file.exists)
        yield file


@pytest.fixture
def waiting(scheduler, write_project):
    """A project whose training is a job of the scheduler that waits for its file `hold` to go."""
    root = write_waiting_project(
        write_project, f"executor: dask, executor_options: {{scheduler_file: {scheduler}}}"
    )
    yield root
    (root / "hold").unlink(missing_ok=True)


def stage_of(root):
    """The process of the stage that runs, which is below a warden, a worker and its nanny."""
    found = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(root) and "run-stage" in (process.info["cmdline"] or ())
    ]
    return next(one for one in found if one.parent() in found)


def finish(root, times):
    """Let the training end, and see that it began so many times in all."""
    (root / "hold").unlink()
    with begin(root) as run:
        said = run.communicate(timeout=UNTIL_S)[0]
    assert run.returncode == 0, said
    assert not has_begun(root, times + 1)
    return said


def test_a_lost_worker_ends_its_training_which_goes_on_where_it_was(waiting):
    with begin(waiting) as run:
        wait_for(lambda: has_begun(waiting))
        stage = stage_of(waiting)
        nanny = stage.parents()[2]  # which would begin a new worker
        nanny.kill()
        said = run.communicate(timeout=UNTIL_S)[0]
    assert run.returncode == 1
    assert "lost its machine: run again, a training goes on from its checkpoint" in said
    assert not has_begun(waiting, 2)
    wait_for(lambda: not stage.is_running())
    finish(waiting, 2)
    assert has_begun(waiting, 2)


def test_a_job_that_was_left_alone_is_found_again(waiting):
    with begin(waiting, "--detach", "train") as run:
        assert "going on: train" in run.communicate(timeout=UNTIL_S)[0]
    wait_for(lambda: has_begun(waiting))
    with begin(waiting) as run:
        said = run.stdout.readline()
        while "is running (tcp://" not in said:
            said = run.stdout.readline()
            assert said
        (waiting / "hold").unlink()
        run.communicate(timeout=UNTIL_S)
    assert run.returncode == 0
    assert not has_begun(waiting, 2)


def test_a_cluster_of_the_runs_own_ends_with_it(write_project):
    root = write_waiting_project(write_project, "executor: dask")
    with begin(root) as run:
        wait_for(lambda: has_begun(root))
        stage = stage_of(root)
        cluster = stage.parents()[2]
        run.kill()
    wait_for(lambda: not (stage.is_running() or cluster.is_running()))
    assert not [*(root / JOBS).glob("dask-*.json")]


def test_nothing_is_left_to_workers_that_end_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(dask, "is_detached", lambda: True)
    with pytest.raises(PtychoTasksError, match=r"Dask's workers end with the run.* --detach"):
        dask.executor.submit(make_job(tmp_path, "train", ["true"]))
    assert dask.executor.poll(["train-1"], dask.DaskOptions()) == {}


def make_job(root, name, command, **options):
    return Job(name, command, root, root, Resources(), dask.DaskOptions(**options))


def is_over(key, job):
    return not dask.executor.poll([key], job.options)


def test_a_lost_worker_repeats_only_what_it_had(scheduler, tmp_path):
    options = {"scheduler_file": str(scheduler)}
    once = "import pathlib; p = pathlib.Path('NAME'); p.open('a').write('*'); "
    # Its parent is the warden, whose parent the worker.
    die = "import psutil; len(p.read_text()) > 1 or psutil.Process().parents()[1].kill()"
    jobs = [
        make_job(tmp_path, f"infer:{name}", [sys.executable, "-c", code], **options)
        for name, code in (("a", once.replace("NAME", "a")), ("b", once.replace("NAME", "b") + die))
    ]
    for job in jobs:  # the one that was done first is not done again
        key = dask.executor.submit(job)
        wait_for(partial(is_over, key, job))
    assert {name: (tmp_path / name).read_text() for name in "ab"} == {"a": "*", "b": "**"}


def test_a_worker_of_another_version_gets_nothing(scheduler, tmp_path, monkeypatch):
    def get_versions(packages=()):
        found = versions.get_versions(packages)
        return {**found, "packages": {**found["packages"], "distributed": "2000.1"}}

    from distributed import client, versions

    other = types.SimpleNamespace(**{**vars(versions), "get_versions": get_versions})
    monkeypatch.setattr(client, "version_module", other)
    job = make_job(tmp_path, "train", ["touch", "made"], scheduler_file=str(scheduler))
    with pytest.raises(PtychoTasksError, match=r"scheduler has distributed .*, and 2000\.1 is "):
        dask.executor.submit(job)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "tcp://127.0.0.1:1"}, "scheduler at tcp://127.0.0.1:1 does not answer: "),
        ({"scheduler": "nonsense://x"}, "scheduler at nonsense://x does not answer: "),
        ({"scheduler_file": "none.json"}, "scheduler_file: none.json: No such file or directory"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line(tmp_path, monkeypatch, options, said):
    monkeypatch.setattr(dask, "_TIMEOUT_S", 0.3)
    with pytest.raises(PtychoTasksError) as caught:
        dask.executor.submit(make_job(tmp_path, "train", ["true"], **options))
    assert said in str(caught.value)


class TestConformance(ExecutorConformance):
    """What every executor keeps."""

    executor = dask.executor
    refused = Resources(options={"licence": "many"})

    @pytest.fixture(autouse=True)
    def _scheduler(self, scheduler, monkeypatch):
        monkeypatch.setattr(type(self), "options", {"scheduler_file": str(scheduler)})
